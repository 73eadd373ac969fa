"""What a checkpoint says of a detector or segmenter makes it again, and other commands refuse it."""

import json

import pytest
import torch

import freqformer
from freqformer import FreqFormerError
from freqformer.checkpoints import read_description, read_weights, save_model, save_weights
from freqformer.cli import main
from freqformer.dense import DETECTORS, create_detector, create_segmenter, describe_dense, load_dense
from freqformer.factory import create_encoder, describe_model
from freqformer.tools.convert import convert
from freqformer.tools.export import export

DETECTOR = {
    "size": (48, 80),
    "native_size": (48, 64),
    "model_args": {"drop_path_rate": 0.1},
    "fpn_channels": 16,
    "head_norm": "group",
    "anchor_sizes": (8, 12, 16, 24, 32),
    "anchor_ratios": (0.5, 1.0),
    "proposals": 30,
    "score_thr": 0.01,
    "nms_thr": 0.4,
    "max_dets": 17,
}
SEGMENTER = {
    "native_size": (32, 64),
    "decoder_args": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "pyramid_channels": 16,
}
NAMES = ["red", "blue"]


def images(height, width):
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def saved(folder, model, **more):
    save_model(folder, model.state_dict(), describe_dense(model, **more))
    return folder


@pytest.fixture(scope="module")
def detector_run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("detector"), create_detector("test_gfnet_h", NAMES, **DETECTOR))


@pytest.fixture(scope="module")
def segmenter_run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("segmenter"), create_segmenter("test_gfnet_h", NAMES, **SEGMENTER))


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("classifier"), freqformer.create_model("test_gfnet_h")
    save_model(folder, model.state_dict(), describe_model(model, {}))
    return folder


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_gfnet", "test_vit"])
def test_a_detector_comes_back_as_it_was(tmp_path, detector, arch):
    model = create_detector(arch, NAMES, detector=detector, **DETECTOR).eval()
    loaded, description = load_dense(saved(tmp_path, model, category_ids=[3, 7]), "detection")
    assert not loaded.training
    assert loaded.label_names == NAMES
    assert description["category_ids"] == [3, 7]
    assert description == read_description(tmp_path)
    x = [images(100, 60)[0], images(50, 70)[0]]
    with torch.no_grad():
        found, expected = loaded(x), model(x)
    assert len(found[0]["scores"]) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    # What is read is written again alike.
    assert describe_dense(loaded, category_ids=[3, 7]) == description


@pytest.mark.parametrize("decoder", ["fpn", "unet"])
@pytest.mark.parametrize("arch", ["test_gfnet_h", "test_gfnet", "test_vit"])
def test_a_segmenter_comes_back_as_it_was(tmp_path, decoder, arch):
    arguments = (
        SEGMENTER if decoder == "fpn" else {**SEGMENTER, "decoder_args": {"decoder_channels": [32, 16, 16, 8, 8]}}
    )
    model = create_segmenter(arch, NAMES, decoder=decoder, **arguments).eval()
    loaded, description = load_dense(saved(tmp_path, model, palette=[[0, 0, 0], [1, 2, 3]]), "segmentation")
    assert not loaded.training
    assert description["palette"] == [[0, 0, 0], [1, 2, 3]]
    x = images(50, 70)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert describe_dense(loaded, palette=[[0, 0, 0], [1, 2, 3]]) == description


@pytest.mark.parametrize("size", [None, 64, (48, 64)])
def test_what_is_described_survives_json(size):
    for model in (
        create_detector("test_gfnet_h", NAMES, **{**DETECTOR, "native_size": size}),
        create_segmenter("test_gfnet_h", NAMES, **{**SEGMENTER, "native_size": size}),
    ):
        description = describe_dense(model)
        assert json.loads(json.dumps(description)) == description


def test_weights_that_a_model_began_with_are_not_asked_for_again(tmp_path, classifier_run):
    model = create_detector("test_gfnet_h", NAMES, backbone_weights=classifier_run, **DETECTOR)
    folder = saved(tmp_path, model)
    assert str(classifier_run) not in json.dumps(read_description(folder))
    load_dense(folder, "detection")


def test_a_ckpt_is_read_as_the_run_is(tmp_path, detector_run):
    state = {f"model.{key}": value for key, value in read_weights(detector_run).items()}
    torch.save({"state_dict": state, "description": read_description(detector_run)}, tmp_path / "last.ckpt")
    loaded, _ = load_dense(tmp_path / "last.ckpt", "detection")
    expected, _ = load_dense(detector_run, "detection")
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_runs_of_other_tasks_are_refused(detector_run, segmenter_run, classifier_run):
    for run, task, what in (
        (classifier_run, "detection", "holds a model of classification, not of detection: .*`freqformer detect train`"),
        (segmenter_run, "detection", "holds a model of segmentation, not of detection: .*`freqformer detect train`"),
        (detector_run, "segmentation", "a model of detection, not of segmentation: .*`freqformer segment train`"),
    ):
        with pytest.raises(FreqFormerError, match=what):
            load_dense(run, task)


def test_bare_weights_and_odd_descriptions_are_refused(tmp_path, detector_run):
    state = read_weights(detector_run)
    save_weights(tmp_path / "bare.safetensors", state, None)
    save_weights(tmp_path / "odd.safetensors", state, ["a", "list"])
    for name in ("bare", "odd"):
        with pytest.raises(
            FreqFormerError, match="does not say what it holds: name a run of `freqformer detect train`"
        ):
            load_dense(tmp_path / f"{name}.safetensors", "detection")
    with pytest.raises(FreqFormerError, match="there is no checkpoint"):
        load_dense(tmp_path / "nothing.safetensors", "detection")


@pytest.mark.parametrize("change", ["lacking", "shape", "unknown"])
def test_weights_that_do_not_fit_their_description_are_refused(tmp_path, detector_run, change):
    state = dict(read_weights(detector_run))
    key = next(key for key in state if key.endswith("cls_logits.weight"))
    if change == "lacking":
        del state[key]
    else:
        state[key if change == "shape" else "unknown"] = torch.zeros(3)
    save_model(tmp_path, state, read_description(detector_run))
    with pytest.raises(FreqFormerError, match=r"do not fit its description: .*(cls_logits|unknown)") as refusal:
        load_dense(tmp_path, "detection")
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_commands_of_classifiers_refuse_it_and_name_its_own(tmp_path, capsys, detector_run, segmenter_run, task):
    run, command = {"detection": (detector_run, "detect"), "segmentation": (segmenter_run, "segment")}[task]
    what = f"holds a model of {task}, not of classification: use `freqformer {command} eval|predict`"
    for refused in (
        lambda: freqformer.load_model(run),
        lambda: freqformer.load_model(run, arch="test_gfnet_h"),
        lambda: create_encoder(str(run), num_classes=3),
        lambda: export(run, tmp_path / "model.onnx"),
        lambda: convert(run, tmp_path / "model.safetensors"),
    ):
        with pytest.raises(FreqFormerError) as refusal:
            refused()
        assert what in str(refusal.value)
    for arguments in (
        ["eval", "--data-path", str(tmp_path)],
        ["predict", str(tmp_path)],
        ["export", str(tmp_path / "model.onnx")],
    ):
        with pytest.raises(SystemExit, match=r"^2$"):
            main([*arguments, "--model-path", str(run)])
        assert what in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
