"""The table of parameters in the docs is what the methods have, and the published counts among them are met."""

from pathlib import Path

import pytest
import timm
import torch

from freqformer import adapters

TABLE = Path(__file__).resolve().parents[2] / "docs" / "freqfit.md"
# What is counted: the method, its options, and how the command line says it.
ROWS = (
    ("filter2d", {}, "FreqFit, complex filter of the grid", "`--freqfit filter2d`"),
    ("filter2d_real", {}, "FreqFit*, real filter of the grid", "`--freqfit filter2d_real`"),
    ("filter1d", {}, "FreqFit, filter of the sequence", "`--freqfit filter1d`"),
    ("ssf", {}, "SSF", "`--freqfit ssf`"),
    ("linear", {}, "linear probe (the head alone)", "`--method linear`"),
    ("bias", {}, "BitFit", "`--method bias`"),
    ("adapter", {}, "Pfeiffer's adapter", "`--method adapter --adapter-ratio 8`"),
    ("vpt_shallow", {}, "VPT, shallow", "`--method vpt_shallow --num-tokens 10`"),
    ("vpt_deep", {}, "VPT, deep", "`--method vpt_deep --num-tokens 10`"),
    ("rlrr", {}, "RLRR", "`--method rlrr`"),
    ("lora", {}, "LoRA", "`--method lora --peft.r 8`"),
    ("vera", {}, "VeRA", "`--method vera --peft.r 256`"),
    ("boft", {}, "BOFT", "`--method boft --peft.boft_block_size 4 --peft.boft_n_butterfly_factor 2`"),
    ("fourierft", {}, "FourierFT", "`--method fourierft --peft.n_frequency 3000`"),
    ("full", {}, "full fine-tuning", "`--method full`"),
)
PUBLISHED = {"lora": "3,538,944", "filter2d": "5,785,600", "filter2d_real": "2,918,400"}
HEAD = ("method", "ViT-B/16", "ViT-L/16", "flag")


def count(handle):
    return sum(parameter.numel() for parameter in handle.parameters())


def counts(architecture, depth):
    """Trainable parameters of each method on a network of that name, the head left out.

    Every block adds as many as the last: they are counted on shallow networks of the full width.
    """
    found = {}
    for blocks in (1, 2):
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=0, depth=blocks)
        for name, options, *_ in ROWS:
            if name == "linear":
                found[name] = [0, 0]
                continue
            handle = adapters.attach(model, name, **options)
            found.setdefault(name, []).append(count(handle))
            handle.remove()
    return {name: two + (depth - 2) * (two - one) for name, (one, two) in found.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(ninja|CUDA|cpp_extension|BOFT|fbd_cuda).*")
def test_the_docs_table_is_what_is_counted():
    base, large = counts("vit_base_patch16_224", 12), counts("vit_large_patch16_224", 24)
    rows = [HEAD, ("---", "---:", "---:", "---")]
    rows += [(title, f"{base[name]:,}", f"{large[name]:,}", flag) for name, _, title, flag in ROWS]
    wanted = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    assert wanted in TABLE.read_text()


@pytest.mark.slow
def test_published_counts():
    with torch.device("meta"):
        model = timm.create_model("vit_large_patch16_224", num_classes=0)
    for name, published in PUBLISHED.items():
        handle = adapters.attach(model, name)
        assert f"{count(handle):,}" == published
        handle.detach()
    assert round(count(adapters.attach(model, "rlrr")) / 1e6, 2) == 0.76
