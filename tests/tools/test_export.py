"""`freqformer export` and ``freqformer.export``: every model, at one size and at any, run outside PyTorch."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import freqformer
from freqformer import FreqFormerError, create_model, export, load_model, predict
from freqformer.checkpoints import save_model
from freqformer.models import model_names

# What each tiny model has that no other has: mixers, stems, heads, norms.
TINY = ["test_gfnet", "test_gfnet_h", "test_freqformer", "test_freqformer_h"]
TINY += ["test_dfformer", "test_cdfformer", "test_gfformer", "test_afno"]
FAST = ["test_freqformer_h", "test_dfformer"]
ONE_BLOCK = {"depth": 1, "spectral_depth": 1}
# Three strides and a head that take the most different grids.
SIZES = [(32, 32), (64, 32), (31, 33), (7, 90), (3, 3), (16, 48), (97, 50)]


def some(*names):
    """All of these names, slow but for a few."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def awake(name, **arguments):
    """A model whose every part shows in its logits; a fresh one hides its filters behind small scales."""
    torch.manual_seed(0)
    model = create_model(name, **arguments).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def few_blocks(name):
    """Keywords for a block of each kind."""
    if name.endswith("_h") or "_h_" in name or any(kind in name for kind in ("dfformer", "gfformer", "afno")):
        return {"depths": (1, 1, 1, 1)}
    return {"depth": 2, "spectral_depth": 2 if "gfnet" in name else 1}


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def agree(path, model, shapes, tolerance=1e-5):
    """What the file computes is what the model does, as a part of the largest value."""
    run = session(path)
    for seed, shape in enumerate(shapes):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = model(images)
        for ours, theirs in zip(
            expected if isinstance(expected, (list, tuple)) else [expected],
            run.run(None, {"image": images.numpy()}),
            strict=True,
        ):
            assert np.abs(ours.numpy() - theirs).max() <= tolerance * ours.abs().max(), shape


def plain(path):
    """The graph, in which no transform and no complex number may be."""
    graph = onnx.load(path).graph
    assert not {"DFT", "STFT"} & {node.op_type for node in graph.node}
    values = [*graph.input, *graph.output, *graph.value_info]
    types = {value.type.tensor_type.elem_type for value in values} | {tensor.data_type for tensor in graph.initializer}
    assert not types & {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
    return graph


def sides(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", some(*TINY))
def test_one_size_and_any_batch(name, tmp_path):
    model = awake(name, **few_blocks(name))
    report = export(model, tmp_path / "x.onnx")
    assert report.relative_error < 1e-5
    agree(tmp_path / "x.onnx", model, [(batch, 3, 32, 32) for batch in (1, 2, 5)])
    graph = plain(tmp_path / "x.onnx")
    assert [sides(value) for value in graph.input] == [["batch", 3, 32, 32]]
    assert [(value.name, sides(value)) for value in graph.output] == [("logits", ["batch", 10])]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_one_file_for_any_size(name, tmp_path):
    model = awake(name, **few_blocks(name))
    export(model, tmp_path / "x.onnx", dynamic_size=True)
    agree(tmp_path / "x.onnx", model, [(1 + i % 3, 3, *size) for i, size in enumerate(SIZES)], 2e-5)
    graph = plain(tmp_path / "x.onnx")
    assert sides(graph.input[0]) == ["batch", 3, "height", "width"]


@pytest.mark.parametrize("resample", ["stretch", pytest.param("crop-pad", marks=pytest.mark.slow)])
def test_feature_maps_at_any_size(resample, tmp_path):
    """Whole maps: what a mean over the tokens would hide is in them."""
    model = awake("test_gfnet", **ONE_BLOCK, resample=resample, img_size=(24, 40))
    report = export(model, tmp_path / "x.onnx", dynamic_size=True, features=True)
    assert report.outputs == ["reduction_8"]

    def last(images):
        return model.forward_intermediates(images, 1, intermediates_only=True)

    agree(tmp_path / "x.onnx", last, [(2, 3, *size) for size in SIZES], 2e-5)
    plain(tmp_path / "x.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_dfformer", "test_freqformer_h"])
def test_feature_maps_of_every_stage(name, tmp_path):
    model = awake(name)
    report = export(model, tmp_path / "x.onnx", features=True)
    assert report.outputs == ["reduction_4", "reduction_8", "reduction_16", "reduction_32"]
    backbone = create_model(name, features_only=True).eval()
    backbone.model.load_state_dict(model.state_dict(), strict=False)
    agree(tmp_path / "x.onnx", backbone, [(1, 3, 32, 32), (2, 3, 32, 32)])


SMALL = {"img_size": 64, "num_classes": 7}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in model_names() if not name.startswith("test_")])
def test_every_registered_model(name, tmp_path):
    """A block of each kind at the model's own widths; what the others add is more of the same."""
    model = awake(name, **SMALL, **few_blocks(name))
    export(model, tmp_path / "x.onnx")
    # A wide network with strong filters amplifies roundings: the measure is what PyTorch itself makes of them.
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pytorch = model(images).double()
        exact = model.double()(images.double())
    (file,) = session(tmp_path / "x.onnx").run(None, {"image": images.numpy()})
    rounding = (pytorch - exact).norm().clamp_min(1e-6 * exact.norm())
    assert (torch.from_numpy(file).double() - exact).norm() < 4 * rounding
    plain(tmp_path / "x.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gfnet_xs", "freqformer_h_s", "dfformer_s18"])
def test_a_whole_model_of_each_family(name, tmp_path):
    report = export(None, tmp_path / "x.onnx", arch=name)
    assert report.relative_error < 1e-5
    assert report.checked == [(1, 3, 224, 224), (3, 3, 224, 224)]
    plain(tmp_path / "x.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["test_freqformer_h", "test_dfformer"])
def test_torch_export_files_are_read_back(name, dynamic, tmp_path):
    model = awake(name, **few_blocks(name))
    export(model, tmp_path / "x.pt2", format="torch-export", dynamic_size=dynamic)
    described = {"config": ""}
    module = torch.export.load(tmp_path / "x.pt2", extra_files=described).module()
    assert json.loads(described["config"])["architecture"] == name
    for size in SIZES if dynamic else SIZES[:1]:
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(module(images), model(images), rtol=1e-4, atol=1e-5)


def test_another_size_than_the_models_own(tmp_path):
    model = awake("test_gfnet", **ONE_BLOCK)
    export(model, tmp_path / "x.onnx", input_size=(40, 23))
    agree(tmp_path / "x.onnx", model, [(2, 3, 40, 23)])


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22, 23])
def test_opsets(opset, tmp_path):
    export(awake("test_gfnet"), tmp_path / "x.onnx", opset=opset)
    (version,) = [o.version for o in onnx.load(tmp_path / "x.onnx").opset_import if o.domain == ""]
    assert version == opset


def test_half_precision_inside_float32_outside_and_the_model_as_it_was(tmp_path):
    model = awake("test_gfnet", **ONE_BLOCK).train()
    before, cfg = {key: value.clone() for key, value in model.state_dict().items()}, model.pretrained_cfg
    export(model, tmp_path / "x.onnx", dtype="float16", input_size=40)
    assert model.training
    assert model.pretrained_cfg is cfg
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    graph = onnx.load(tmp_path / "x.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) > 1 and min(tensor.dims) > 12]
    assert weights
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    agree(tmp_path / "x.onnx", model.eval(), [(2, 3, 40, 40)], 2e-2)


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shots")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (3, 4, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """The folder of a model of four named classes, exported."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(model_folder, path)
    return path


def test_integers_for_linear_layers_but_not_for_the_transform(model_folder, shots, tmp_path):
    report = export(model_folder, tmp_path / "x.onnx", dtype="int8", calibration=shots)
    assert report.checked == [(8, 3, 32, 32), (4, 3, 32, 32)]
    assert report.top1_agreement >= 0.75
    # The patches' convolution, two layers a perceptron, two of the attention, and the head.
    graph = onnx.load(tmp_path / "x.onnx").graph
    integers = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    assert len(integers) == 1 + 3 * 2 + 2 + 1
    model = load_model(model_folder)
    for path, (ours, theirs) in zip(
        sorted(shots.iterdir()),
        zip(
            predict(model, sorted(shots.iterdir())), predict(tmp_path / "x.onnx", sorted(shots.iterdir())), strict=True
        ),
        strict=True,
    ):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=0.2), path


def test_the_file_says_what_it_is(model_folder, trained):
    properties = session(trained).get_modelmeta().custom_metadata_map
    assert json.loads(properties["config"]) == json.loads((model_folder / "config.json").read_text())
    assert properties["freqformer"] == freqformer.__version__
    assert json.loads(properties["export"]) == {"dtype": "float32", "dynamic_size": False, "features": False}


# Predicting and evaluating with the file


def test_predict_takes_the_file_for_the_checkpoint(command, model_folder, trained, shots):
    ours, theirs = (command("predict", "--model-path", p, shots, "--json") for p in (model_folder, trained))
    assert theirs.code == 0, theirs.err
    assert theirs.err == ""
    for one, other in zip(ours.out.splitlines(), theirs.out.splitlines(), strict=True):
        one, other = json.loads(one), json.loads(other)
        assert one.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=1e-5)
        assert one == other


@pytest.fixture(scope="module")
def labelled(shots, tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    for place, path in enumerate(sorted(shots.iterdir())):
        folder = root / "val" / ["ape", "bee", "cat", "dog"][place % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    return root


def test_eval_takes_the_file_for_the_checkpoint(command, model_folder, trained, labelled):
    words = ["--data-set", "FOLDER", "--data-path", labelled, "--num-workers", 0, "--json", "--precision", "32-true"]
    words += ["--output-dir", "none"]
    ours, theirs = (command("eval", "--model-path", path, *words) for path in (model_folder, trained))
    assert theirs.code == 0, theirs.err
    ours, theirs = json.loads(ours.out), json.loads(theirs.out)
    assert ours.keys() == theirs.keys()
    for figure in ("top1", "top5", "loss", "images"):
        assert ours[figure] == pytest.approx(theirs[figure], abs=1e-5)


def test_another_size_than_the_files_is_refused(refused, trained, labelled):
    words = ["--data-set", "FOLDER", "--data-path", labelled, "--num-workers", 0, "--input-size", 48]
    line = refused("eval", "--model-path", trained, *words)
    assert "32x32" in line
    assert "48x48" in line
    assert "--dynamic-size" in line


def test_what_is_no_file_of_ours_is_refused(refused, shots, tmp_path):
    image = shots / "00.png"
    assert "there is no ONNX file" in refused("predict", "--model-path", tmp_path / "none.onnx", image)
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    assert "cannot run" in refused("predict", "--model-path", tmp_path / "junk.onnx", image)
    value = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["image"], ["logits"])], "g", [value], [logits])
    foreign = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(foreign, tmp_path / "foreign.onnx")
    assert "freqformer export" in refused("predict", "--model-path", tmp_path / "foreign.onnx", image)


def test_feature_maps_are_no_classes(refused, shots, tmp_path):
    export(awake("test_gfnet", **ONE_BLOCK), tmp_path / "x.onnx", features=True)
    assert "--features" in refused("predict", "--model-path", tmp_path / "x.onnx", shots / "00.png")


# The command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x.onnx"], "--model-path"),
        (["x.onnx", "--arch", "gfnet_zz"], "gfnet_zz"),
        (["x.onnx", "--arch", "test_gfnet", "--format", "tflite"], "torch-export"),
        (["x.onnx", "--arch", "test_gfnet", "--dtype", "int4"], "int8"),
        (["x.onnx", "--arch", "test_gfnet", "--dtype", "int8"], "--calibration"),
        (["x.onnx", "--arch", "test_gfnet", "--calibration", "."], "--dtype int8"),
        (["x.onnx", "--arch", "test_gfnet", "--opset", "9"], "--opset"),
        (["x.onnx", "--arch", "test_gfnet", "--input-size", "0"], "--input-size"),
        (["x.pt", "--arch", "test_gfnet"], ".onnx"),
        (["x.onnx", "--arch", "test_gfnet", "--format", "torch-export"], ".pt2"),
        (["nowhere/x.onnx", "--arch", "test_gfnet"], "nowhere"),
        (["x.onnx", "--model-path", "nowhere"], "nowhere"),
        (["x.pt2", "--format=torch-export", "--arch=test_gfnet", "--dtype=int8", "--calibration=."], "onnx"),
    ],
)
def test_wrong_use_is_one_line(refused, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused("export", *words)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_did_and_replaces_only_when_told(command, refused, model_folder, tmp_path):
    target = tmp_path / "x.onnx"
    target.write_text("precious")
    assert "--overwrite" in refused("export", "--model-path", model_folder, target)
    assert target.read_text() == "precious"
    answer = command("export", "--model-path", model_folder, target, "--overwrite")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    first, second = answer.out.splitlines()
    assert str(target) in first
    assert "test_freqformer" in first
    assert "largest error" in second
    assert "relative" in second
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    onnx.checker.check_model(str(target))


def test_a_file_that_differs_is_kept_aside(command, model_folder, tmp_path):
    """Nothing is equal to what is no number."""
    state = load_file(model_folder / "model.safetensors")
    state["head.bias"][0] = float("nan")
    save_model(tmp_path / "run", state, json.loads((model_folder / "config.json").read_text()))
    target = tmp_path / "x.onnx"
    target.write_text("precious")
    answer = command("export", "--model-path", tmp_path / "run", target, "--overwrite")
    assert answer.code == 1
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert str(tmp_path / "x.failed.onnx") in answer.err
    assert target.read_text() == "precious"
    onnx.checker.check_model(str(tmp_path / "x.failed.onnx"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.failed.onnx", "x.onnx"]


def test_a_model_without_classes_has_feature_maps_alone(tmp_path):
    with pytest.raises(FreqFormerError, match="--features"):
        export(create_model("test_gfnet", num_classes=0), tmp_path / "x.onnx")
