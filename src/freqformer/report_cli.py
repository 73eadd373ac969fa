"""``freqformer report``: a run's page, and several runs on one."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .flags import Flags


def report(flags: "Flags", words: list[str]) -> int:
    """``freqformer report RUN`` and ``freqformer report compare RUN...``."""
    if words[:1] == ["compare"]:
        return _compare(words[1:])
    flags.parser.description = f"{flags.parser.description}. `{flags.parser.prog} compare` puts several side by side"
    flags.positional("run", "the folder of a run, an evaluation or a sweep; its report.html is written again")
    run = flags.parse(words)["run"]
    from .report import write_report

    print(write_report(Path(run)))
    return 0


def _compare(words: list[str]) -> int:
    from .flags import Flags

    flags = Flags("freqformer report compare", "figures, settings, curves and pictures of several runs on one page")
    flags.value("output", str, "the .html file to write", default="compare.html")
    flags.switch("overwrite", "replace an existing file")
    flags.positional("runs", "folders of runs or evaluations of one task", several=True)
    args = flags.parse(words)
    from .report import compare

    folders = [Path(run) for run in args["runs"]]
    print(compare(folders, Path(args["output"]), overwrite=args["overwrite"]))
    return 0
