import pytest
import torch

import freqformer
from freqformer.models import canonical_name
from freqformer.models.official import from_official
from freqformer.ops import use_lowering
from freqformer.tools import list_models

QUICK = ["gfnet-ti", "spectformer-ti.heads4"]
LONG = ["gfnet-xs", "gfnet-s", "spectformer-xs.heads6", "spectformer-s.heads6"]
CASES = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in LONG)]


def name_of(case):
    return canonical_name(case.split(".")[0])


def error(y, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    return ((y.double().flatten() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("lowering", ["fft", "dft"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_official_codes(golden, golden_state, golden_input, case, lowering):
    data = golden(f"models/{case}")
    state, x = golden_state(data["state_dict"]), golden_input(data["input_shape"])
    model = freqformer.create_model(name_of(case)).eval()
    freqformer.load_checkpoint(model, state)
    with torch.no_grad(), use_lowering(lowering):
        assert error(model(x), data["logits"]) <= 1e-5
    model = model.double()
    with torch.no_grad(), use_lowering(lowering):
        assert error(model(x.double()), data["logits_float64"]) <= 1e-9


@pytest.mark.parametrize("lowering", ["fft", "dft"])
@pytest.mark.parametrize("case", [*QUICK, *LONG])
def test_costs_are_those_of_the_official_codes(golden, case, lowering):
    data = golden(f"models/{case}")
    with use_lowering(lowering):
        (row,) = list_models(name_of(case))
    assert row.parameters == data["num_params"]
    assert row.gmacs == pytest.approx(data["gmacs"], rel=1e-8)


@pytest.mark.slow
def test_resized_logits_are_those_of_the_official_finetuning(golden, golden_state, golden_input):
    data = golden("resize/gfnet-xs.224to384")
    model = freqformer.create_model("gfnet_xs", img_size=384).double().eval()
    assert sum(p.numel() for p in model.parameters()) == data["num_params"]
    report = freqformer.load_checkpoint(model, golden_state(data["source_state_dict"]))
    assert len(report.resampled) == len(data["resized"]) == 13
    with torch.no_grad():
        y = model(golden_input(data["input_shape"]).double())
    assert error(y, data["logits_float64"]) <= 1e-9


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
def test_official_keys_map_one_to_one_onto_ours(golden, case):
    shapes = golden(f"models/{case}")["state_dict"]
    with torch.device("meta"):
        own = freqformer.create_model(name_of(case)).state_dict()
        names = from_official({key: torch.empty(shape) for key, shape in shapes.items()})
    assert names.keys() == shapes.keys()
    assert sorted(names.values()) == sorted(own)
    for theirs, ours in names.items():
        if ours != "pos_embed":
            assert tuple(own[ours].shape) == tuple(shapes[theirs]), theirs
    assert from_official(own) == {}
