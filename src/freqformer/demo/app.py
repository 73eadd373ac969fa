"""The page itself: its controls, its words, and what happens when one of them changes."""

import html
import logging
import traceback
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from ..data import printable
from ..errors import FreqFormerError
from .looking import ALL, TOP_K, Said, answer, attention_of, colours_of, filters_of, look
from .subject import Subject
from .uploads import MAX_BYTES, MAX_PIXELS, read_upload, uploaded

THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
"""Its fonts are those of the reader's machine: nothing is asked of another."""
CSS = """
.status p { margin: 0; }
.status .bad { color: #b00020; font-weight: 600; }
.dark .status .bad { color: #ff8a80; }
#upload img { width: 100%; height: 100%; object-fit: contain; }
.picture img { padding-top: 2.2em; object-fit: contain; }
.legend span { display: inline-block; margin-right: 1em; white-space: nowrap; }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em; }
"""
# One computation at a time; so many may wait for theirs.
_WAITING = 16
_EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model"}
_HINT = f"Any common image format, at most {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 1_000_000} million pixels"
_FREQUENCIES = f"""## Frequencies
Remove low frequencies (smooth areas) or high ones (edges, texture, noise), and see what the model makes of the rest.
0 is the mean, which always stays; 1 is the Nyquist frequency, a change from each pixel to the next; {ALL} is all."""
_BANDS = {"All": (0.0, ALL), "Low ones alone": (0.0, 0.25), "All but low ones": (0.25, ALL)}
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# What is shown of what a model says.
_ANSWERS = {"classification": ("shares",), "detection": ("picture", "summary"), "segmentation": ("picture", "shares")}
_FAILED = "Something went wrong with this image on the server. Try another one, or another setting."


def build(subject: Subject, examples: Mapping[str, Path], folder: Path) -> gr.Blocks:
    """Lay out the page of a model.

    Args:
        subject: the model.
        examples: image files to choose from, by name; the first is shown when the page opens.
        folder: Gradio's own for uploads (``GRADIO_TEMP_DIR``).

    Returns:
        The page, to be launched.
    """
    with gr.Blocks(title="FreqFormer", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(f"<h1>FreqFormer</h1><p><b>{_plain(subject.name)}</b>: {_plain(subject.introduction())}.</p>")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload = gr.Image(
                    next(map(str, examples.values()), None),
                    label="Your image",
                    placeholder="Drop an image, paste it, or click to choose a file",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=300,
                    elem_id="upload",
                )
                status = gr.HTML(_said(_HINT), elem_classes="status", elem_id="status")
                gr.Examples(
                    [[str(path)] for path in examples.values()],
                    upload,
                    label="Or choose an example",
                    api_visibility="private",
                )
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    answers = [*_answers(subject, "", "of-given"), *_answers(subject, " in what is left", "of-left")]
                if subject.task != "classification":
                    gr.HTML(_legend(subject))
                score = gr.Slider(
                    0,
                    1,
                    0.3,
                    step=0.01,
                    label="Least score",
                    info="leaves out detections that the model is less sure of",
                    visible=subject.task == "detection",
                    elem_id="score",
                )
                gr.Markdown(_FREQUENCIES)
                with gr.Row():
                    low = gr.Slider(
                        0, ALL, 0, step=0.01, label="Keep from", info="removes the frequencies below", elem_id="low"
                    )
                    high = gr.Slider(
                        0, ALL, ALL, step=0.01, label="Keep up to", info="removes the frequencies above", elem_id="high"
                    )
                with gr.Row():
                    for words, band in _BANDS.items():
                        gr.Button(words, size="sm").click(partial(list, band), None, [low, high], **_EVENT)
        with gr.Row():
            given = _picture("What the model gets" if subject.task == "classification" else "The image", "given")
            spectrum = _picture("Its spectrum", "spectrum")
            left = _picture("What is left of it", "left")
            left_spectrum = _picture("The spectrum of what is left", "left-spectrum")
        shown: list[Any] = [given, spectrum, left, left_spectrum, *answers]

        # Moving a slider asks the model of what is left alone.
        @lru_cache(maxsize=4)
        def of_given(path: str, score: float) -> Said:
            return answer(subject, read_upload(path), score)

        def looked(sent: Any, low: Any, high: Any, score: Any) -> dict[Any, Any]:
            if sent is None:
                return dict.fromkeys(shown)
            path, problem = _try(lambda: uploaded(sent, folder))
            image, problem = _try(lambda: read_upload(path)) if path else (None, problem)
            if image is None:
                # The browser would show what it cannot read as a broken picture.
                return {**dict.fromkeys([upload, *shown]), status: _said(problem, bad=True)}
            seen, problem = _try(lambda: look(subject, image, low, high, score, partial(of_given, path)))
            if seen is None:
                return {status: _said(problem, bad=True)}
            said = [getattr(one, part) for one in (seen.of_given, seen.of_left) for part in _ANSWERS[subject.task]]
            values = [seen.given, seen.spectrum, seen.left, seen.left_spectrum, *said]
            return {**dict(zip(shown, values, strict=True)), status: _said(_HINT)}

        gr.on(
            [page.load, upload.change, low.change, high.change, score.change],
            looked,
            [upload, low, high, score],
            [upload, status, *shown],
            # Gradio would open the file, and without bounds; it also trusts paths that lack its mark of a file.
            preprocess=False,
            trigger_mode="always_last",
            show_progress="minimal",
            show_progress_on=[left, left_spectrum, *answers],
            **_EVENT,
        )
        upload.clear(lambda: _said(_HINT), None, status, **_EVENT)
        gr.Markdown("## Inside the model")
        if subject.is_onnx:
            gr.Markdown("An ONNX file shows neither filters nor attention: open the checkpoint it was exported from.")
        else:
            _inside(page, upload, subject, folder)
        page.queue(max_size=_WAITING)
    return page


def _answers(subject: Subject, of_what: str, name: str) -> list[Any]:
    """The components for what a model says of an image, in the order of `_ANSWERS`."""
    if subject.task == "classification":
        return [gr.Label(label=f"Prediction{of_what.replace(' in', ' of')}", num_top_classes=TOP_K, elem_id=name)]
    with gr.Column(min_width=280):
        noun = "Objects found" if subject.task == "detection" else "Classes of the pixels"
        picture = _picture(f"{noun}{of_what}", name, height=360)
        if subject.task == "detection":
            return [picture, gr.Textbox(label=f"How many{of_what}", interactive=False, elem_id=f"{name}-summary")]
        shares = gr.Label(label=f"Shares of the pixels{of_what}", num_top_classes=TOP_K, show_heading=False)
        return [picture, shares]


def _inside(page: gr.Blocks, upload: gr.Image, subject: Subject, folder: Path) -> None:
    """The panels of the filters and the attention, or a sentence in the place of one that does not apply."""
    filters_once = cache(lambda: _try(lambda: filters_of(subject)))

    def attention(sent: Any) -> tuple[Any, str]:
        image, _ = (None, "") if sent is None else _try(lambda: read_upload(uploaded(sent, folder)))
        return (None, "") if image is None else _try(lambda: attention_of(subject, image))

    for title, words, height, triggers, function, inputs in (
        # As large as it is: a deep model has many rows.
        ("Learned filters", "filters", None, [page.load], filters_once, []),
        ("Attention", "attention", 560, [page.load, upload.change], attention, [upload]),
    ):
        with gr.Tab(title):
            picture = _picture(f"{title} of this model's blocks", words, height)
            problem = gr.HTML(elem_id=f"{words}-words")

        def drawn(*sent: Any, function: Callable[..., tuple[Any, str]] = function) -> tuple[Any, Any]:
            image, why_not = function(*sent)
            return gr.Image(image, visible=not why_not), _said(why_not) if why_not else ""

        gr.on(triggers, drawn, inputs, [picture, problem], preprocess=False, trigger_mode="always_last", **_EVENT)


def _try(work: Callable[[], _Result]) -> tuple[_Result | None, str]:
    """What a function returns, or why not, in words for a visitor."""
    try:
        return work(), ""
    except FreqFormerError as error:
        return None, str(error)
    except Exception:
        if _log.isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        return None, _FAILED


def _said(words: str, *, bad: bool = False) -> str:
    sentence = words[:1].upper() + words[1:].rstrip(".") + "."
    return f'<p role="status" class="{"bad" if bad else "good"}">{_plain(sentence)}</p>'


def _plain(text: str) -> str:
    return html.escape(printable(text))


def _legend(subject: Subject) -> str:
    rows = [
        f'<span><i style="background:#{bytes(colour).hex()}"></i>{_plain(name)}</span>'
        for name, colour in colours_of(subject).items()
    ]
    return f'<div class="legend">{"".join(rows)}</div>'


def _picture(label: str, name: str, height: int | None = 300) -> gr.Image:
    return gr.Image(
        label=label,
        interactive=False,
        format="png",
        height=height,
        buttons=["fullscreen", "download"],
        elem_id=name,
        elem_classes="picture",
    )
