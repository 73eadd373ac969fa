"""What commands share: choosing one of several kinds, progress, tables, notes, the figures of a run."""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FreqFormerError
from .settings import speaks

if TYPE_CHECKING:
    from .flags import Flags
    from .tasks import RunConfig


Command = Callable[["Flags", list[str]], int]


def dispatch(flags: "Flags", words: list[str], commands: Mapping[str, tuple[Command, str]]) -> int:
    """Run the command that the first word names, such as `train` of `freqformer detect train`.

    Args:
        flags: of the command above it.
        words: the words after that command.
        commands: from a name to a function and what it does, in words.

    Returns:
        The exit code.

    Raises:
        FreqFormerError: the first word names none of them.
    """
    from .flags import Flags

    prog = flags.parser.prog
    kind, *rest = words or ["--help"]
    if kind in ("-h", "--help"):
        print(f"usage: {prog} {'|'.join(commands)} [FLAGS]\n\n{flags.parser.description}\n")
        width = max(map(len, commands))
        print("\n".join(f"  {name:<{width}} {summary}" for name, (_, summary) in commands.items()))
        return 0 if words else 2
    if kind not in commands:
        near = difflib.get_close_matches(kind, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(commands)}"
        raise FreqFormerError(f"there is no command {prog.partition(' ')[2]} {kind!r}: {hint}")
    function, summary = commands[kind]
    return function(Flags(f"{prog} {kind}", summary), rest)


def say(notes: Sequence[str]) -> None:
    """Print notes to standard error, in one process of several."""
    for note in notes if speaks() else ():
        print(f"freqformer: {note}", file=sys.stderr)


def shown(doing: str) -> Callable[[Sequence[Any]], Any]:
    """A function that passes on a sequence's elements, with progress on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return partial(track, description=doing, console=console, transient=True, disable=not console.is_terminal)


def in_batches(paths: list[Path], size: int) -> Any:
    """Batches of paths, with progress on a terminal."""
    return shown("reading")([paths[i : i + size] for i in range(0, len(paths), size)])


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print columns under a header."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    # On a pipe no line is folded: a program reads it.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False, emoji=False)
    console.print(table)


def written(figures: dict[str, Any]) -> str:
    """Where an evaluation has written its page, as the end of a line."""
    return f"; written to {figures['output_dir']}" if "output_dir" in figures else ""


def evaluate_and_print(
    evaluate: Callable[[Any], dict[str, Any]], config: Any, show: Callable[[dict[str, Any]], None]
) -> int:
    """Evaluate and print the figures, also where they could not be written or drawn.

    Args:
        evaluate: the task's function.
        config: what to evaluate.
        show: prints the figures.

    Returns:
        The exit code.
    """
    try:
        figures = evaluate(config)
    except Exception as error:
        found = getattr(error, "figures", None)
        if found is not None and speaks():
            show(found)
        raise
    if speaks():
        show(figures)
    return 0


def run_and_report(config: "RunConfig", scores: Callable[[dict[str, Any]], str]) -> int:
    """Run a config and print the figures of each set of weights that it leaves.

    Args:
        config: the run's settings.
        scores: puts a set's figures into words.

    Returns:
        The exit code.
    """
    from .engine import run

    metrics = run(config)
    if speaks():
        print(f"best epoch: {scores(metrics['best'])}")
        for name, what in (("raw", "its weights without the average"), ("average", "mean of the last epochs")):
            if name in metrics:
                print(f"{what}: {scores(metrics[name])}")
    return 0
