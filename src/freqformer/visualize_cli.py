"""The commands that draw what a model has learned: one function a kind, each writing KIND.png and KIND.html."""

from typing import TYPE_CHECKING

from .terminal import dispatch, shown

if TYPE_CHECKING:
    from .flags import Flags


def visualize(flags: "Flags", words: list[str]) -> int:
    """``freqformer visualize KIND``."""
    commands = {
        "filters": (_filters, "the learned filters of every spectral layer"),
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
    flags.value(
        "order", str, "which channels: energy (the strongest first), index (the first) or random", default="energy"
    )
    flags.value("seed", int, "what random channels are drawn with", default=0)
    flags.value("images", list[str], "images that show which mixtures dynamic filters choose")
    args = flags.parse(words)
    from .tools.visualize import show_filters

    for path in show_filters(args.pop("checkpoint"), **args, progress=shown("drawing")):
        print(path)
    return 0
