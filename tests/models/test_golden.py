import pytest
import torch

import freqformer
from freqformer.models import canonical_name
from freqformer.models.official import to_canonical
from freqformer.ops import use_lowering
from freqformer.tools import list_models

# One of each kind of part on every change; the rest, slow.
QUICK = [
    "gfnet-ti",
    "spectformer-ti.heads4",
    "gfnet-h-ti",
    "spectformer_s.token_label",
    "cdfformer_s18",
    "dfformer_s18_afno",
]
LONG = [
    "gfnet-xs",
    "gfnet-s",
    "gfnet-h-s",
    "spectformer-xs.heads6",
    "spectformer-s.heads6",
    "spectformer_s.no_token_label",
    "spectformer_s.token_label.batch2",
    "spectformer_l.no_token_label",
    "spectformer_l.token_label",
    "dfformer_s18",
    "dfformer_s18.batch2",
    "dfformer_s18_afno.batch2",
    "dfformer_s18_d8",
    "dfformer_s18_gelu",
    "dfformer_s18_k2",
    "dfformer_s36",
    "gfformer_s18",
]
CASES = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in LONG)]


def name_of(case):
    """Our name of a case's model: upstream calls its pyramids spectformer_s and spectformer_l."""
    name = case.split(".")[0]
    return canonical_name(name.replace("spectformer_", "spectformer_h_"))


def arguments_of(case):
    return {"token_label": ".token_label" in case} if case.startswith("spectformer_") else {}


def error(y, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    return ((y.double().flatten() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("lowering", ["fft", "dft"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_official_codes(golden, golden_state, golden_input, case, lowering):
    data = golden(f"models/{case}")
    state, x = golden_state(data["state_dict"]), golden_input(data["input_shape"])
    model = freqformer.create_model(name_of(case), **arguments_of(case)).eval()
    freqformer.load_checkpoint(model, state)
    with torch.no_grad(), use_lowering(lowering):
        assert error(model(x), data["logits"]) <= 1e-5
    model = model.double()
    with torch.no_grad(), use_lowering(lowering):
        assert error(model(x.double()), data["logits_float64"]) <= 1e-9


@pytest.mark.parametrize("case", [*QUICK, *LONG])
def test_costs_are_those_of_the_official_codes(golden, case):
    data = golden(f"models/{case}")
    (row,) = list_models(name_of(case), **arguments_of(case))
    assert row.parameters == data["num_params"]
    assert row.gmacs * data["input_shape"][0] == pytest.approx(data["gmacs"], rel=1e-8)


@pytest.mark.parametrize("name", [*(f"gfnet_{size}" for size in ("ti", "xs", "s", "b", "h_ti", "h_s", "h_b"))])
def test_printed_figures_are_the_authors(golden, name):
    (row,) = list_models(name)
    (printed,) = [m for m in golden("reference")["gfnet"]["models"] if canonical_name(m["arch"]) == name]
    assert (row.published_parameters, row.published_flops) == (printed["params"], printed["flops"])
    assert row.published_top1 == printed["acc1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "name", "size", "resampled"),
    [("gfnet-xs.224to384", "gfnet_xs", 384, 13), ("gfnet-h-ti.224to256", "gfnet_h_ti", 256, 20)],
)
def test_resized_logits_are_those_of_the_official_finetuning(
    golden, golden_state, golden_input, case, name, size, resampled
):
    data = golden(f"resize/{case}")
    model = freqformer.create_model(name, img_size=size).double().eval()
    assert sum(p.numel() for p in model.parameters()) == data["num_params"]
    report = freqformer.load_checkpoint(model, golden_state(data["source_state_dict"]))
    assert len(report.resampled) == len(data["resized"]) == resampled
    with torch.no_grad():
        y = model(golden_input(data["input_shape"]).double())
    assert error(y, data["logits_float64"]) <= 1e-9


@pytest.mark.slow
def test_a_classifier_for_another_size_is_the_official_one(golden, golden_state, golden_input):
    data = golden("resize/dfformer_s18.256x320.classifier")
    model = freqformer.create_model("dfformer_s18", img_size=(256, 320)).double().eval()
    report = freqformer.load_checkpoint(model, golden_state(data["source_state_dict"]))
    assert len(report.resampled) == len(data["resized"])
    x = golden_input(data["input_shape"]).double()
    with torch.no_grad():
        assert error(model(x), data["logits_float64"]) <= 1e-9
        # Resampled on arrival instead of on loading, the answer is the same.
        native = freqformer.create_model("dfformer_s18").double().eval()
        freqformer.load_checkpoint(native, golden_state(data["source_state_dict"]))
        assert error(native(x), data["logits_float64"]) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "size"), [("load_weights", (256, 320)), ("run_time", (224, 224)), ("det800", (800, 800))]
)
def test_features_of_detection_are_the_official_ones(golden, golden_state, golden_input, case, size):
    data = golden(f"resize/dfformer_s18.256x320.{case}")
    model = freqformer.create_model("dfformer_s18", img_size=size, features_only=True, out_norms=True).double().eval()
    freqformer.load_checkpoint(model, golden_state(data["source_state_dict"]))
    with torch.no_grad():
        features = model(golden_input(data["input_shape"]).double())
    assert len(features) == len(data["features"])
    for ours, theirs in zip(features, data["features"], strict=True):
        assert list(ours.shape) == theirs["shape"]
        flat = ours.flatten()
        assert error(flat[:64], theirs["first64_float64"]) <= 1e-9
        assert error(flat[:: theirs["stride"]], theirs["strided64_float64"]) <= 1e-9
        assert flat.norm().item() == pytest.approx(theirs["l2_float64"], rel=1e-9)


def test_freqformer_takes_spectformers_weights(golden, golden_state, golden_input):
    data = golden("models/spectformer-ti.heads4")
    spectformer = freqformer.create_model("spectformer_ti").eval()
    freqformer.load_checkpoint(spectformer, golden_state(data["state_dict"]))
    freq = freqformer.create_model("freqformer_ti").double().eval()
    report = freqformer.load_checkpoint(freq, spectformer.state_dict())
    assert [*report.mapped, *report.resampled, *report.left_out] == []
    with torch.no_grad():
        assert error(freq(golden_input(data["input_shape"]).double()), data["logits_float64"]) <= 1e-9


@pytest.mark.parametrize("case", [*QUICK, *LONG])
def test_official_keys_become_ours_without_a_rest(golden, case):
    shapes = golden(f"models/{case}")["state_dict"]
    with torch.device("meta"):
        own = freqformer.create_model(name_of(case), **arguments_of(case)).state_dict()
        state, mapped = to_canonical({key: torch.empty(shape) for key, shape in shapes.items()}, case)
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in own.items()}
    assert {mapped.get(key, key) for key in shapes} == own.keys()
    assert to_canonical(own, "ours")[1] == {}
