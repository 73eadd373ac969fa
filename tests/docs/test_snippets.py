"""Every command and every snippet of README.md and docs/ does what a reader types it for, on miniature data.

A fenced block without a language holds commands, one in ``python`` a snippet; output and drawings are in ``text``.
A command is read to its last flag by a fast test and, where `RULES` says so, run by a slow one; what has no rule fails.
"""

import ast
import contextlib
import doctest
import importlib
import io
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

import freqformer.cli
import freqformer.dense_cli
from freqformer.adapters import METHODS
from freqformer.flags import Flags

ROOT = Path(__file__).parents[2]
PAGES = [path for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))]


@dataclass(frozen=True)
class Run:
    """The command is run."""

    more: str = ""
    """Flags put after the docs' own."""


@dataclass(frozen=True)
class Read:
    """The command's flags and settings are checked, and it is not run."""

    why: str


# The first pattern that is found in a command says what is done with it.
RULES: list[tuple[str, Run | Read]] = [
    (r"^(torchrun|mpirun|srun) ", Read("one process here; tests/engine/test_processes.py starts several")),
    (r"^freqformer bench", Read("it measures for minutes; tests/tools/test_bench.py runs it")),
    (r"^freqformer demo", Read("it serves until it is stopped; the tests of the demo open it in a browser")),
    (r"^freqformer adapt sweep", Read("it makes many runs; tests/engine/test_sweep.py runs it")),
    (r"FASHION_MNIST|runs/fashion|CIFAR10 --data-path (?!cifar10)", Read("it is a record of a run of many minutes")),
    (r"sup_vitb16_imagenet21k", Read("a ViT-B and its weights; tests/engine/test_adapt.py runs test_vit")),
    (r"stanford_cars|data-path coco", Read("the data set's own layout; tests/data has it in miniature")),
    (
        r"^freqformer export --model-path runs/(photos|mine) --dynamic-size (photos|mine)\.onnx$",
        Read("conftest.py runs it once for all pages"),
    ),
    (r"^freqformer train .*--resume", Run()),
    (r"^freqformer train .*--data-set CIFAR10", Run("--arch freqformer_n --data-set DIGITS")),
    (r"^freqformer train .*--finetune gfnet-xs.pth", Run("--arch gfnet_xs --input-size 64")),
    (r"^freqformer train .*--recipe imagenet", Run("--input-size 32")),
    (r"^freqformer train ", Run()),
    (r"^freqformer adapt ", Run()),
    (r"^freqformer detect train ", Run()),
    (r"^freqformer segment train ", Run()),
    (r"^freqformer (eval|detect eval|segment eval) ", Run("--num-workers 0 --accelerator cpu --devices 1")),
    (r"^freqformer (export|convert|average|detect predict|segment predict|visualize) ", Run("--overwrite")),
    (r"^freqformer report compare ", Run("--overwrite")),
    (r"^freqformer (models|recipes|predict|report) ?", Run()),
]

# Snippets whose sizes are a reader's and not a test's: the page, what stands there, and what the test has in its place.
SMALLER = [
    ("README.md", 'create_model("gfnet_xs").to(torch.bfloat16)', 'create_model("test_gfnet").to(torch.bfloat16)'),
    ("README.md", "torch.randn(16, 3, 224, 224, dtype", "torch.randn(2, 3, 32, 32, dtype"),
    ("README.md", "epochs=2, mixup=0", "epochs=1, limit_train=32, batch_size=16, mixup=0"),
    (
        "docs/dense.md",
        "input_size=(240, 320), epochs=2",
        "input_size=(48, 64), epochs=1, num_workers=0, overwrite=True",
    ),
    ("docs/data.md", '"FLOWERS", "data"', '"FOLDER", "flowers"'),
    ("docs/data.md", "num_workers=4", "num_workers=0"),
]


def batches():
    """Images and targets, as a reader's own loader gives them."""
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(8, 3, 32, 32), torch.randint(10, (8,))), batch_size=4)


# What a reader brings.
BROUGHT = {"README.md": lambda: {"train_loader": batches(), "val_loader": batches()}}


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a block."""

    page: str
    line: int
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"

    @property
    def words(self):
        return [word for word in shlex.split(self.text, comments=True) if word != "..."]

    @property
    def freqformer(self):
        """The words after ``freqformer``, whoever starts it; None where it is another program."""
        words = self.words
        place = words.index("freqformer") if "freqformer" in words else None
        started = place == 0 or words[0] in ("torchrun", "mpirun", "srun")
        return words[place + 1 :] if place is not None and started else None


def blocks_of(path):
    """A page's fenced blocks."""
    page = path.relative_to(ROOT).as_posix()
    found, opened = [], None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = re.fullmatch(r"( *)(```+)(.*)", line)
        if opened is None and fence:
            opened, lines = (number, *fence.groups()), []
        elif opened is not None and fence and fence[2] == opened[2] and not fence[3]:
            text = "\n".join(one.removeprefix(opened[1]) for one in lines)
            found.append(Block(page, opened[0], opened[3].strip(), text))
            opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page}:{opened} is not closed"
    return found


def commands_of(block):
    """The commands of a block: all its lines, or those after ``$ `` where it shows what they print."""
    lines = block.text.splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    found, begun = [], None
    for number, line in enumerate(lines, block.line + 1):
        if begun is None:
            if (prompted and not line.startswith("$ ")) or not line.strip() or line.startswith("#"):
                continue
            begun, text = number, ""
            line = line.removeprefix("$ ")
        text += line.removesuffix("\\")
        if not line.endswith("\\"):
            found.append(Command(block.page, begun, " ".join(text.split())))
            begun = None
    return found


def spans_of(path):
    """The commands in a page's sentences and tables."""
    text = path.read_text()
    for found in re.finditer(r"(?<!`)`(freqformer\s[^`]+)`(?!`)", text):
        yield Command(
            path.relative_to(ROOT).as_posix(), text.count("\n", 0, found.start()) + 1, " ".join(found[1].split())
        )


SPANS = [span for path in PAGES for span in spans_of(path)]
BLOCKS = [block for path in PAGES for block in blocks_of(path)]
SHELL = [block for block in BLOCKS if block.language in ("", "bash", "sh", "console")]
SNIPPETS = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [command for block in SHELL for command in commands_of(block)]
FREQFORMER = [command for command in COMMANDS if command.freqformer is not None]
# The tables there have whole commands, beside those of the other repositories.
WHOLE = [span for span in SPANS if span.page == "docs/migrating.md" and " --" in span.text and "..." not in span.text]
OTHERS = [command for command in COMMANDS if command.freqformer is None]


def treatment(command):
    """What `RULES` says of a command; None where they say nothing."""
    return next((what for pattern, what in RULES if re.search(pattern, command.text)), None)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_of_a_kind_that_is_tested(block):
    if block.language in ("yaml", "yml"):
        yaml.safe_load(block.text)
    elif block.language == "json":
        json.loads(block.text)
    else:
        assert block.language in ("", "bash", "sh", "console", "python", "text"), f"{block}: {block.language}"
    if block in SHELL:
        assert commands_of(block), f"{block}: no command; is it `text`?"


def test_every_command_has_a_rule():
    without = [f"{command} {command.text}" for command in FREQFORMER if treatment(command) is None]
    assert without == [], "add a rule to RULES"


def test_every_rule_has_a_command():
    used = {next(iter(p for p, _ in RULES if re.search(p, command.text)), None) for command in FREQFORMER}
    assert [pattern for pattern, _ in RULES if pattern not in used] == [], "delete it from RULES"


class Parsed(BaseException):
    """A command line was read to its end."""


@pytest.fixture
def read_only(monkeypatch):
    """Commands of training check their settings and stop; the others stop at the last flag."""

    def checked(config, *_):
        config.check()
        raise Parsed

    monkeypatch.setattr(freqformer.cli, "run_and_report", checked)
    monkeypatch.setattr(freqformer.dense_cli, "run_and_report", checked)
    # The module, whose name the function has as well.
    monkeypatch.setattr(importlib.import_module("freqformer.engine.sweep"), "sweep", checked)

    def stop_after(words):
        if words[0] not in ("train", "adapt") and words[:2] not in (["detect", "train"], ["segment", "train"]):
            parse = Flags.parse

            def stopped(self, given, **more):
                parse(self, given, **more)
                raise Parsed

            monkeypatch.setattr(Flags, "parse", stopped)

    return stop_after


@pytest.mark.parametrize("command", [*FREQFORMER, *WHOLE], ids=str)
def test_a_command_is_understood(command, read_only, monkeypatch, miniature, capsys):
    monkeypatch.chdir(miniature)
    if command.words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        assert get_args_parser().parse_args(command.words[1:]).training_script == "freqformer"
    read_only(command.freqformer)
    with contextlib.suppress(Parsed):
        with pytest.raises(SystemExit) as stop:
            freqformer.cli.main(command.freqformer)
        assert stop.value.code == 0, f"{command}: `{command.text}`: {capsys.readouterr().err}"


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_another_programs_command_has_what_it_names(command):
    program, *words = [word.removeprefix(".venv/bin/") for word in command.words]
    if [program, *words[:2]] == ["python", "-m", "pip"]:
        program, words = "pip", words[2:]
    if program == "make":
        assert set(words) <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    elif program == "pip":
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert words[0] == "install"
        named = re.fullmatch(r"(?:\.|freqformer|pre-commit)(?:\[([\w,]+)\])?", words[-1])
        assert named, words
        assert set((named[1] or "all").split(",")) <= set(extras)
    elif program in ("python", "bash") and (ROOT / words[0]).is_file():
        text = (ROOT / words[0]).read_text()
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= set(re.findall(r"--[\w-]+", text))
    else:
        assert re.match(ELSEWHERE, " ".join([program, *words])), f"{command}: is it a command? `{command.text}`"


# What is not this repository's: a shell's own, tools that work over the network, and the papers' scripts.
ELSEWHERE = r"(cd|mkdir|unzip|git|hf|pre-commit|bash run\.sh) "

# What a page's own example makes.
MADE = {("docs/add-a-method.md", "freqformer adapt --method bands --bands 5")}


@pytest.mark.parametrize("span", [span for span in SPANS if (span.page, span.text) not in MADE], ids=str)
def test_a_command_in_a_sentence_has_the_flags_that_it_names(span, monkeypatch, tmp_path, capsys):
    def known(flags, words, **_):
        flags._normalise(words)
        raise Parsed

    monkeypatch.setattr(Flags, "parse", known)
    monkeypatch.chdir(tmp_path)
    words = [word.strip("[]") for word in shlex.split(span.text)[1:] if word.strip("[].")]
    if words == ["COMMAND"]:
        return
    with contextlib.suppress(Parsed):
        with pytest.raises(SystemExit):
            freqformer.cli.main(words)
        # A command that has commands of its own prints them, where it is named without one.
        said = capsys.readouterr()
        assert said.out.startswith(("usage: freqformer", "freqformer ")), f"{span}: `{span.text}`: {said.err}"


@dataclass
class Page:
    """A reader of one page, from its top: a folder, and the names that the snippets have made so far."""

    folder: Path
    names: dict
    done: set = field(default_factory=set)
    methods: dict = field(default_factory=dict)


@pytest.fixture(scope="module")
def readers(workplace, tmp_path_factory):
    """The reader of each page."""
    found = {}

    def reader(page):
        if page not in found:
            folder = tmp_path_factory.mktemp(Path(page).stem) / "here"
            # Whoever replaces a file writes a new one: links are copies.
            shutil.copytree(workplace, folder, copy_function=os.link)
            found[page] = Page(folder, {"__name__": "__main__", **BROUGHT.get(page, dict)()})
        return found[page]

    return reader


def runs(block):
    """Whether a slow test runs anything of a block."""
    return block in SNIPPETS or (
        block in SHELL and any(isinstance(treatment(c), Run) for c in commands_of(block) if c.freqformer is not None)
    )


@pytest.mark.slow
# What Lightning advises, and what it finds of PyTorch's own, where a snippet has a Trainer of its own.
@pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning", "ignore:.*LeafSpec.*:FutureWarning"
)
@pytest.mark.parametrize("block", [block for block in BLOCKS if runs(block)], ids=str)
def test_a_block_runs(block, readers, monkeypatch, freqformer_command, small, capfd):
    reader = readers(block.page)
    monkeypatch.chdir(reader.folder)
    # A page shows how to add a method, which only its own reader has.
    for name, kind in reader.methods.items():
        monkeypatch.setitem(METHODS, name, kind)
    before = set(METHODS)
    for earlier in BLOCKS:
        if earlier.page == block.page and earlier.line <= block.line and earlier not in reader.done and runs(earlier):
            reader.done.add(earlier)
            if earlier in SNIPPETS:
                execute(earlier, reader.names)
            else:
                call_all(earlier, freqformer_command, small, capfd)
    reader.methods |= {name: METHODS.pop(name) for name in set(METHODS) - before}


def call_all(block, freqformer_command, small, capfd):
    """Run the commands of a block that are to be run."""
    for command in commands_of(block):
        words, how = command.freqformer, None if command.freqformer is None else treatment(command)
        if isinstance(how, Run):
            kind = " ".join(words[:2]) if words[0] in ("detect", "segment") else words[0]
            resumed = "--resume" in words
            more = ("" if resumed else small.get(kind, "")) + " " + how.more
            capfd.readouterr()
            code, said = freqformer_command(*words, *more.split()), capfd.readouterr()
            assert code == 0, f"{command}: `{command.text} {more}`: {said.err}"


def execute(block, names):
    """Run a snippet statement by statement; a comment after a ``print`` is what it prints."""
    text = block.text
    for page, theirs, ours in SMALLER:
        text = text.replace(theirs, ours) if page == block.page else text
    torch.manual_seed(0)
    lines = text.splitlines()
    for statement in ast.parse(text).body:
        here = f"{block.page}:{block.line + statement.lineno}"
        said = io.StringIO()
        module = ast.Module([statement], type_ignores=[])
        with contextlib.redirect_stdout(said):
            exec(compile(module, here, "exec"), names)
        parts = lines[statement.lineno - 1 : statement.end_lineno]
        comments = {
            line.partition("  # ")[2] for line in parts if line.lstrip().startswith("print(") and "  # " in line
        }
        if comments:
            # In a loop a comment is what each turn prints.
            printed = said.getvalue().splitlines()
            assert all(any(says(line, comment) for comment in comments) for line in printed), (here, printed, comments)
            assert all(any(says(line, comment) for line in printed) for comment in comments), (here, printed, comments)


def says(line, comment):
    """Whether a line of output is what a comment says, where ``...`` is anything."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(comment + "\n", line + "\n", options)


def test_what_is_made_smaller_stands_in_its_page():
    for page, theirs, _ in SMALLER:
        assert any(theirs in block.text for block in SNIPPETS if block.page == page), (page, theirs)
