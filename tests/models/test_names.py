import re

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

import freqformer
from freqformer import FreqFormerError
from freqformer.models import canonical_name, model_names
from freqformer.tools import list_models

NAMES = model_names()
ENDS = r"pos_embed|(norm|head|token_head|head\.(fc1|norm|fc2))\.(weight|bias)"
SHRINK = r"(pre_norm|proj|post_norm)\.(weight|bias)"
KEY = re.compile(
    rf"{ENDS}|stem\.({SHRINK}|shrink\.{SHRINK}|conv\.\d\.\w+)|pool\.(norm1|norm2|attn\.\w+|mlp\.\w+)\.(weight|bias)|"
    rf"stages\.\d\.(downsample\.{SHRINK}|norm\.(weight|bias)|blocks\.\d+\.((norm1|norm2|mlp\.\w+)\.(weight|bias|scale)|"
    r"token_mixer\.[a-z0-9_.]+|(layer_scale|residual_scale[12])\.gamma))"
)


@pytest.fixture
def shapes():
    """Parameter names and shapes of a model, made without memory."""

    def make(name, **arguments):
        with torch.device("meta"):
            return {key: tuple(v.shape) for key, v in freqformer.create_model(name, **arguments).state_dict().items()}

    return make


def test_the_designs_names_are_registered():
    isotropic = {f"{f}_{size}" for f in ("gfnet", "spectformer", "freqformer") for size in ("ti", "xs", "s", "b")}
    pyramids = {f"gfnet_h_{size}" for size in ("ti", "s", "b")}
    pyramids |= {f"{f}_h_{size}" for f in ("spectformer", "freqformer") for size in ("s", "b", "l")}
    pyramids |= {f"{f}_{size}" for f in ("dfformer", "cdfformer") for size in ("s18", "s36", "m36", "b36")}
    ablations = {"gfformer_s18", *(f"dfformer_s18_{change}" for change in ("gelu", "relu", "k2", "d8", "afno"))}
    nano = {"freqformer_n", "gfnet_h_n", "freqformer_h_n"}
    tiny = {"test_gfnet", "test_spectformer", "test_freqformer", "test_dfformer"}
    assert isotropic | pyramids | ablations | nano | tiny <= set(NAMES)


def test_patterns_choose_names():
    assert set(model_names("gfnet_?")) == {"gfnet_s", "gfnet_b"}
    assert set(model_names("dfformer_?36")) == {"dfformer_s36", "dfformer_m36", "dfformer_b36"}
    assert model_names("resnet*") == []


@pytest.mark.parametrize("name", NAMES)
def test_names_are_timms_entry_points_and_clash_with_none_of_its_own(name):
    assert timm.is_model(name)
    assert timm.model_entrypoint(name).__module__.startswith("freqformer.")
    assert not hasattr(timm.models, name)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_names_have_the_one_layout(shapes, name):
    keys = shapes(name)
    assert [key for key in keys if not KEY.fullmatch(key)] == []


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "former_h" not in n and re.match(r"(test_)?(gfnet|\w*qformer|spect)", n)]
)
def test_spectral_blocks_come_first(shapes, name):
    keys = shapes(name)
    blocks = {key.split(".blocks.")[0] + key.split(".")[3] for key in keys if ".blocks." in key}
    filters = {key.split(".blocks.")[0] + key.split(".")[3] for key in keys if key.endswith("complex_weight")}
    # All of GFNet's, 4 of the others (2 of the tiny ones).
    spectral = len(blocks) if "gfnet" in name else 2 if name.startswith("test_") else 4
    assert len(filters) == spectral
    if "_h" not in name:
        assert filters == {f"stages.0{i}" for i in range(spectral)}


# Parameters of the variants without vectors, counted in the official codes.
OFFICIAL_COUNTS = {
    "gfnet_h_b": 53_744_200,
    "spectformer_h_b": 33_052_880,
    "freqformer_h_b": 33_052_880,
    "dfformer_m36": 65_316_064,
    "dfformer_b36": 114_989_344,
    "cdfformer_s36": 45_230_658,
    "cdfformer_m36": 64_433_218,
    "cdfformer_b36": 113_368_642,
    "dfformer_s18_relu": 30_324_300,
}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gfnet_b", 43_120_616), ("spectformer_b", 57_159_656), ("freqformer_b", 57_159_656), *OFFICIAL_COUNTS.items()],
)
def test_variants_without_vectors_have_the_published_size(name, parameters):
    (row,) = list_models(name)
    assert row.parameters == parameters
    assert row.input_size == (224, 224)


@pytest.mark.parametrize("family", ["spectformer", "freqformer"])
@pytest.mark.parametrize(("size", "heads"), [("ti", 4), ("xs", 6), ("s", 6), ("b", 8)])
def test_variants_have_64_channels_a_head(family, size, heads):
    with torch.device("meta"):
        model = freqformer.create_model(f"{family}_{size}")
    assert {m.num_heads for m in model.modules() if hasattr(m, "num_heads")} == {heads}
    assert model.num_features == 64 * heads


@pytest.mark.parametrize("size", ["ti", "xs", "s", "b"])
def test_freqformer_is_spectformers_network(shapes, size):
    assert shapes(f"freqformer_{size}") == shapes(f"spectformer_{size}")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("gfnet-xs", "gfnet_xs"),
        ("GFNet-XS", "gfnet_xs"),
        ("spectformer-ti", "spectformer_ti"),
        ("SpectFormer-T", "spectformer_ti"),
        ("freqformer-t", "freqformer_ti"),
        ("FreqFormer_B", "freqformer_b"),
    ],
)
def test_papers_spellings(spelling, name):
    assert canonical_name(spelling) == name


@given(st.sampled_from(NAMES), st.data())
def test_case_and_dashes_do_not_matter(name, data):
    letters = [data.draw(st.sampled_from([c, c.upper(), "-" if c == "_" else c])) for c in name]
    assert canonical_name("".join(letters)) == name


@pytest.mark.parametrize(
    ("wrong", "suggested"), [("gfnet_xxs", "gfnet_xs"), ("frequformer-s", "freqformer_s"), ("gfnt-b", "gfnet_b")]
)
def test_a_slip_is_answered_with_the_nearest_name(wrong, suggested):
    with pytest.raises(FreqFormerError, match=f"{wrong}.*{suggested}"):
        canonical_name(wrong)


@given(st.text(max_size=30).map(lambda text: f"{text}_x"))
def test_any_other_name_is_one_line(text):
    with pytest.raises(FreqFormerError, match="there is no model") as caught:
        canonical_name(text)
    assert len(str(caught.value).splitlines()) == 1


def test_timms_own_models_are_not_ours():
    with pytest.raises(FreqFormerError):
        freqformer.create_model("resnet18")
