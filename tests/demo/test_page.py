"""What the page's functions answer for a model of each task, without a server or a browser."""

import asyncio
import json

import pytest

from freqformer.demo import load

TASKS = ["classification", "detection", "segmentation"]
# A folder named b"sur\xffr" on the disk.
UNDECODABLE = "sur\udcffr"


@pytest.fixture(scope="module")
def strange(write_classifier, make_detector, make_segmenter, tmp_path_factory):
    """A model of each task with a class whose name cannot be decoded."""
    folder = tmp_path_factory.mktemp("strange")
    return {
        "classification": load(write_classifier(labels=("bee", UNDECODABLE))),
        "detection": load(make_detector(folder / "detector", label_names=("box", UNDECODABLE))),
        "segmentation": load(make_segmenter(folder / "segmenter", label_names=("ground", "box", UNDECODABLE))),
    }


@pytest.fixture
def page(photo, tmp_path, monkeypatch):
    """The function of a model's page that looks at an upload; it gives the texts, and pictures as their places."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    from freqformer.demo.app import build

    photo.save(tmp_path / "upload.png")

    async def built(subject):
        return build(subject, {}, tmp_path)

    def opened(subject):
        # Without a running loop Gradio would leave one open.
        page = asyncio.run(built(subject))
        (looked,) = (event.fn for event in page.fns.values() if event.name == "looked")
        return lambda *settings: {
            component.elem_id: value
            for component, value in looked({"path": str(tmp_path / "upload.png")}, *settings).items()
        }

    return opened


@pytest.mark.parametrize("task", TASKS)
def test_a_class_name_that_cannot_be_decoded_is_shown_escaped(strange, task, page):
    subject = strange[task]
    assert r"sur\udcffr" in subject.labels
    shown = page(subject)(0, 0.4, 0.0)
    words = {name: value for name, value in shown.items() if isinstance(value, (str, dict))}
    # As a server sends it.
    sent = json.dumps(words, ensure_ascii=False).encode()
    assert task == "segmentation" or rb"sur\\udcffr" in sent
    assert {"of-given", "of-left", "given", "spectrum", "left", "left-spectrum"} <= set(shown)


@pytest.mark.parametrize(
    "task", ["classification", *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS[1:])]
)
def test_moving_a_slider_asks_the_model_once(strange, task, page):
    asked = []
    handle = strange[task].model.register_forward_hook(lambda *_: asked.append(task))
    looked = page(strange[task])
    counts = []
    for high in (0.2, 0.4, 1.42):
        looked(0, high, 0.3)
        counts.append(len(asked))
    handle.remove()
    assert counts == [2, 3, 3]
