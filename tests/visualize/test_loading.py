"""The network in any checkpoint."""

import pytest

from freqformer import create_model
from freqformer.checkpoints import save_model
from freqformer.errors import FreqFormerError
from freqformer.factory import describe_model
from freqformer.visualize import load_network


def test_each_task_is_told(make_detector, make_segmenter, tmp_path):
    model = create_model("test_gfnet", num_classes=3)
    save_model(tmp_path / "classifier", model.state_dict(), describe_model(model, {}))
    made = {
        "classification": tmp_path / "classifier",
        "detection": make_detector(tmp_path / "detector"),
        "segmentation": make_segmenter(tmp_path / "segmenter"),
    }
    for task, folder in made.items():
        network, told = load_network(folder)
        assert told == task
        assert not network.training
        assert load_network(folder, network.pretrained_cfg["architecture"] if task == "classification" else None)[1]
        with pytest.raises(FreqFormerError, match="leave out --arch"):
            load_network(folder, "dfformer_s18")


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_exported_files_have_no_layers(tmp_path, name):
    with pytest.raises(FreqFormerError, match="name the run"):
        load_network(tmp_path / name)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FreqFormerError, match="there is no checkpoint"):
        load_network(tmp_path / "nothing.safetensors")
