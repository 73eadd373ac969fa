"""The commands that draw what a model has learned: one function a kind, each writing KIND.png and KIND.html."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .terminal import dispatch, shown

if TYPE_CHECKING:
    from .flags import Flags

_IMAGES = "image files, or folders of images"


def visualize(flags: "Flags", words: list[str]) -> int:
    """``freqformer visualize KIND``."""
    commands = {
        "filters": (_filters, "the learned filters of every spectral layer"),
        "spectrum": (_spectrum, "which frequencies the features hold, block after block"),
        "response": (_response, "how much of an image each stage sees: its effective receptive field"),
        "attention": (_attention, "where the attention of the blocks looks on images"),
        "bands": (_bands, "the score as images lose their low or their high frequencies"),
    }
    return dispatch(flags, words, commands)


def _common(flags: "Flags") -> None:
    """The flags that every kind has, and the checkpoint."""
    flags.positional("checkpoint", "a run's folder, or a .ckpt, .pth or .safetensors file")
    flags.value("arch", str, "the model's name; only bare weights need it")
    flags.value("output_dir", str, "the folder for the picture and the page", default="pictures")
    flags.switch("overwrite", "replace the files of an earlier call there")


def _filters(flags: "Flags", words: list[str]) -> int:
    _common(flags)
    flags.value("layers", list[str], "spectral layers by number (0 is the first, -1 the last) or name; by default all")
    flags.value("channels", int, "channels of each layer at most", default=16)
    flags.value("channel_numbers", list[int], "in their place, channels by number")
    flags.value(
        "order", str, "which channels: energy (the strongest first), index (the first) or random", default="energy"
    )
    flags.value("seed", int, "what random channels are drawn with", default=0)
    flags.value("images", list[str], "images that show which mixtures dynamic filters choose")
    args = flags.parse(words)
    numbers = args.pop("channel_numbers")
    args["channels"] = args["channels"] if numbers is None else numbers
    from .tools.visualize import show_filters

    for path in show_filters(args.pop("checkpoint"), **args, progress=shown("drawing")):
        print(path)
    return 0


def _spectrum(flags: "Flags", words: list[str]) -> int:
    _common(flags)
    flags.positional("images", _IMAGES, several=True)
    flags.value("against", list[str], "further checkpoints, drawn beside it", default=[])
    from .tools.views import show_spectrum

    return _shown(show_spectrum, flags.parse(words), "measuring")


def _response(flags: "Flags", words: list[str]) -> int:
    _common(flags)
    flags.positional("images", f"{_IMAGES}; without any, noise", several=True, optional=True)
    from .tools.views import show_response

    return _shown(show_response, flags.parse(words), "measuring")


def _attention(flags: "Flags", words: list[str]) -> int:
    _common(flags)
    flags.positional("images", f"{_IMAGES}; the picture is of the first, the page has all", several=True)
    flags.value(
        "query", tuple[float, float], "the place whose token is asked: shares of height and width", default=(0.5, 0.5)
    )
    from .tools.views import show_attention

    return _shown(show_attention, flags.parse(words), "drawing")


def _bands(flags: "Flags", words: list[str]) -> int:
    _common(flags)
    flags.positional("images", f"{_IMAGES}, of a classifier, in place of a data set", several=True, optional=True)
    flags.value("data_set", str, "the labelled images, named as in `freqformer eval`; of a classifier alone")
    flags.value("data_path", str, "the folder the data set lies in")
    flags.value("split", str, "which split of it", default="val")
    flags.value("val_json", str, "of a detector: the annotations in COCO's format, where they lie in no usual place")
    flags.value("images_dir", str, "of a detector: the folder that the annotations' file names begin at")
    flags.value("val_images", str, "of a segmenter: the folder of the images, where they lie in no usual place")
    flags.value("val_masks", str, "of a segmenter: the folder of their masks")
    flags.value("class_file", str, "of a segmenter: the classes' names, a line each, or with colours")
    flags.value("ignore_index", int | None, "of a segmenter: the value of mask pixels without a class", default=255)
    flags.value("limit", int, "images at most: evenly chosen, or in a fixed shuffled order of a data set", default=500)
    flags.value("num_workers", int, "processes that load them", default=2)
    flags.value("cutoffs", list[float], "shares of the Nyquist frequency to cut at; by default ten from 0.05 to 1")
    flags.value("against", list[str], "further checkpoints, drawn beside it", default=[])
    from .tools.views import show_bands

    return _shown(show_bands, flags.parse(words), "evaluating")


def _shown(show: Callable[..., tuple[Path, Path]], args: dict[str, Any], doing: str) -> int:
    for path in show(args.pop("checkpoint"), **args, progress=shown(doing)):
        print(path)
    return 0
