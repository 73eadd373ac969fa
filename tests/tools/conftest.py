"""What the tests of the tools share: the command line in this process, and a small model in a file."""

from dataclasses import dataclass

import pytest
import torch

from freqformer import create_model
from freqformer.checkpoints import save_model
from freqformer.cli import main

LABELS = ["ape", "bee", "cat", "dog"]


@dataclass
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def command(capfd):
    """Call the command line in this process."""

    def call(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        return Answer(stop.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def refused(command):
    """Call the command line; it must exit with code 2 and a single line on stderr, which is returned."""

    def call(*words):
        answer = command(*words)
        assert answer.code == 2, answer
        assert answer.err.startswith("freqformer: "), answer
        assert answer.err.count("\n") == 1, answer.err
        return answer.err

    return call


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model of four named classes as a run leaves it; its probabilities are far apart."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = create_model("test_freqformer", num_classes=4)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}
    description = {
        "architecture": "test_freqformer",
        "num_classes": 4,
        "num_features": 32,
        "model_args": {"img_size": [32, 32]},
        "label_names": LABELS,
        "pretrained_cfg": {
            **preprocessing,
            "interpolation": "bicubic",
            "first_conv": "stem.proj",
            "classifier": "head",
            "num_classes": 4,
        },
    }
    save_model(folder, model.state_dict(), description)
    return folder
