"""Short runs on data sets that are told by other means than class folders."""

import json

import numpy as np
import pytest
from PIL import Image

LABELS = {"train": [2, 0, 1, 1, 2, 0, 0, 1], "val": [1, 0, 2]}


def picture(label):
    noise = np.random.default_rng(label).integers(0, 80, (32, 32, 3))
    noise[..., label] += 150
    return Image.fromarray(noise.astype(np.uint8))


def fgvc(folder):
    (folder / "images").mkdir(parents=True)
    for split, labels in LABELS.items():
        for i, label in enumerate(labels):
            picture(label).save(folder / f"images/{split}{i}.png")
        listed = {f"{split}{i}.png": label + 1 for i, label in enumerate(labels)}
        (folder / f"{split}.json").write_text(json.dumps(listed))
    return ["--data-set", "FGVC", "--data-path", folder], ["1", "2", "3"]


def hub(folder):
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
    names = ["ant", "bee", "cat"]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"img": list(map(picture, labels)), "label": labels}, features=features)
            for split, labels in LABELS.items()
        }
    ).save_to_disk(str(folder))
    return ["--data-set", f"hf:{folder}"], names


@pytest.mark.parametrize("write", [fgvc, hub])
def test_two_steps_an_evaluation_and_the_names(command, words, tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    data, names = write(tmp_path / "data")
    given = [word for word in words("runs/x", *data, "--batch-size", 4, "--limit-train", "none")]
    answer = command(*given)
    assert answer.code == 0, answer.err
    assert json.loads((tmp_path / "runs/x/config.json").read_text())["label_names"] == names
    answer = command("eval", "--model-path", "runs/x", *data, "--num-workers", 0, "--json")
    assert json.loads(answer.out)["images"] == 3


def test_the_folder_of_a_run_on_a_hub_data_set_has_a_plain_name(tiny):
    assert tiny(None, data_set="hf:someone/Some_Set@plain").default_output_dir() == (
        "runs/test_freqformer-hf-someone-some_set-plain"
    )
