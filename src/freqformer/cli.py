"""The command line: parse, then import what the command needs."""

import difflib
import io
import json
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from . import __version__
from .dense_cli import detect, segment
from .errors import FreqFormerError, MissingExtra, SaidElsewhere
from .launchers import only_the_first_complains
from .report_cli import report
from .settings import as_yaml, settings_of_a_run, settings_of_an_adaptation
from .terminal import evaluate_and_print, in_batches, print_table, run_and_report, say, shown, written
from .visualize_cli import visualize

if TYPE_CHECKING:
    from .flags import Flags

# Modules that only some extra installs.
_EXTRAS = {
    "jsonargparse": "cli",
    "docstring_parser": "cli",
    "rich": "cli",
    "yaml": "cli",
    "lightning": "train",
    "torchmetrics": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "jinja2": "train",
    "sklearn": "train",
    "scipy": "train",
    "datasets": "hub",
    "peft": "adapt",
    "segmentation_models_pytorch": "dense",
    "faster_coco_eval": "dense",
    "optuna": "adapt",
    "gradio": "demo",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 done in part, 2 wrong use or unusable input, 128+N signal N."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may be bytes that are no text; they are printed as they are.
        sys.stdout.reconfigure(errors="surrogateescape")
    debug = "--debug" in words
    logging.getLogger("freqformer").setLevel(logging.DEBUG if debug else logging.NOTSET)
    sys.exit(_run([word for word in words if word != "--debug"], debug))


def _run(words: list[str], debug: bool) -> int:
    try:
        return _dispatch(words)
    except BrokenPipeError:
        # Whoever read our output has had enough; Python would complain once more when it flushes.
        sys.stdout = None
        return 0
    except KeyboardInterrupt:
        print("freqformer: stopped", file=sys.stderr)
        return 130
    except SaidElsewhere as error:
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error)
        print(f"freqformer: {message}", file=sys.stderr)
        return code


def _explain(error: Exception) -> tuple[str, int]:
    """One line for an error, and the exit code."""
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        error = MissingExtra(error.name, _EXTRAS[error.name])
    if isinstance(error, FreqFormerError):
        # A worker process hands its error over with a traceback before it; the last line is the message.
        return str(error).strip().splitlines()[-1].removeprefix("freqformer.errors.FreqFormerError: "), error.exit_code
    if hasattr(error, "exit_code"):
        return str(error), error.exit_code
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]} (--debug shows where)", 2 if isinstance(error, OSError) else 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"freqformer {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(_COMMANDS)}"
        raise FreqFormerError(f"there is no command {name!r}: {hint}")
    from .flags import Flags

    function, summary = _COMMANDS[name]
    return function(Flags(f"freqformer {name}", summary), rest)


def _help() -> str:
    commands = "\n".join(f"  {name:<11} {summary}" for name, (_, summary) in _COMMANDS.items())
    return (
        f"usage: freqformer COMMAND [FLAGS]\n\nFrequency-domain vision models.\n\ncommands:\n{commands}\n\n"
        "`freqformer COMMAND --help` explains a command's flags. --debug shows a traceback, --version the version."
    )


def _models(flags: "Flags", words: list[str]) -> int:
    flags.positional("pattern", "shell pattern of the names to list", default="*")
    flags.switch("json", "print one JSON object a model")
    args = flags.parse(words)
    from .models import model_names, spelling
    from .tools import list_models

    names = model_names(spelling(args["pattern"]))
    rows = [row for name in shown("counting")(names) for row in list_models(name)]
    if not rows:
        raise FreqFormerError(f"no model matches {args['pattern']!r}: `freqformer models` lists all")
    if args["json"]:
        for row in rows:
            print(json.dumps(asdict(row)))
        return 0
    print_table(
        ["name", "parameters", "printed", "GMACs", "printed", "spectral GMACs", "printed top-1", "native input"],
        [
            [
                row.name,
                f"{row.parameters / 1e6:.2f} M",
                row.published_parameters or "-",
                f"{row.gmacs:.3f}",
                row.published_flops or "-",
                f"{row.spectral_gmacs:.4f}",
                f"{row.published_top1}" if row.published_top1 else "-",
                "x".join(map(str, row.input_size)),
            ]
            for row in rows
        ],
    )
    return 0


def _train(flags: "Flags", words: list[str]) -> int:
    from .spellings import help_text, translate
    from .tasks import ClassificationConfig

    flags.parser.description = f"{flags.parser.description}. {help_text()}"
    with only_the_first_complains():
        line = translate(words)
        config = ClassificationConfig(**settings_of_a_run(flags, line.words, ClassificationConfig, timm=line.timm))
    say(line.notes)
    return run_and_report(config, _scores)


def _adapt(flags: "Flags", words: list[str]) -> int:
    from .tasks import AdaptationConfig

    if words[:1] == ["sweep"]:
        return _sweep(words[1:])
    flags.parser.description = (
        f"{flags.parser.description}. `{flags.parser.prog} sweep` tunes and repeats it on many tasks"
    )
    with only_the_first_complains():
        config = AdaptationConfig(**settings_of_an_adaptation(flags, words, AdaptationConfig))
    return run_and_report(config, _scores)


def _sweep(words: list[str]) -> int:
    from .engine.sweep import CHOSEN, SweepConfig, sweep
    from .flags import Flags

    flags = Flags(
        "freqformer adapt sweep",
        "tune learning rate and weight decay on each task's validation split, then train with the best and several "
        "seeds; the same command again, or --resume, goes on with it",
    )
    with only_the_first_complains():
        for word in words:
            name = word.partition("=")[0].removeprefix("--").replace("-", "_")
            if word.startswith("--") and name in CHOSEN:
                raise FreqFormerError(f"--{name.replace('_', '-')} is no flag of a sweep: {CHOSEN[name]}")
        config = SweepConfig(**settings_of_an_adaptation(flags, words, SweepConfig, chosen=CHOSEN))
    results = sweep(config)
    found = {**{name: row for name, row in results["tasks"].items() if row["top1"]}, **results["means"]}
    rows = []
    for name, row in found.items():
        deviation = "" if row["std"] is None else f" ± {100 * row['std']:.2f}"
        rows.append([name, f"{100 * row['mean']:.2f}{deviation}", str(row["seeds"])])
    print_table(["", "top-1", "seeds"], rows)
    return 0 if results["complete"] else 1


def _scores(figures: dict[str, Any]) -> str:
    return f"top1 {100 * figures['top1']:.2f}%  top5 {100 * figures['top5']:.2f}%  loss {figures['loss']:.4f}"


def _recipes(flags: "Flags", words: list[str]) -> int:
    flags.positional("name", "a recipe, to print its settings that differ from the defaults", optional=True)
    flags.switch("json", "print one JSON object a recipe")
    args = flags.parse(words)
    from .engine.recipes import RECIPES, get_recipe

    chosen = list(RECIPES.values()) if args["name"] is None else [get_recipe(args["name"])]
    if args["json"]:
        for recipe in chosen:
            print(json.dumps(asdict(recipe)))
    elif args["name"] is None:
        rows = [[recipe.name, recipe.command, recipe.what, recipe.source] for recipe in chosen]
        print_table(["name", "command", "what", "source"], rows)
    else:
        print(as_yaml(chosen[0].settings, "\n"))
    return 0


def _eval(flags: "Flags", words: list[str]) -> int:
    from .engine import EvaluationConfig, evaluate
    from .spellings import IDLE_IN_EVAL, translate

    flags.fields(EvaluationConfig)
    flags.defaults({"output_dir": "auto"})
    flags.switch("json", "print one JSON object")
    with only_the_first_complains():
        line = translate(words, idle=IDLE_IN_EVAL)
        args = flags.parse(line.words)
    say(line.notes)
    as_json = args.pop("json")

    def show(figures: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(figures), flush=True)
            return
        skipped = f"; {figures['bad_images']} more could not be read" if figures["bad_images"] else ""
        speed = f"{figures['images']} images, {figures['images_per_second']:.0f} images/s"
        print(f"{_scores(figures)}  {speed}{skipped}{written(figures)}", flush=True)

    return evaluate_and_print(evaluate, EvaluationConfig(**args), show)


def _predict(flags: "Flags", words: list[str]) -> int:
    flags.value("model_path", str, "a run's folder, or a .ckpt, .pth, .safetensors or .onnx file", required=True)
    flags.value("arch", str, "the model's name; only bare weights need it")
    flags.value("top_k", int, "classes to name for each image", default=5)
    flags.value("batch_size", int, "images per step", default=64)
    flags.switch("json", "print one JSON object an image")
    flags.positional("images", "image files, or folders of images", several=True)
    args = flags.parse(words)
    if args["top_k"] < 1 or args["batch_size"] < 1:
        raise FreqFormerError("--top-k and --batch-size must be at least 1")
    from .data import decode
    from .factory import load_classifier
    from .tools import find_images, predict

    model = load_classifier(args["model_path"], arch=args["arch"])
    unreadable = 0
    rows: list[list[str]] = []
    for batch in in_batches(list(find_images(args["images"])), args["batch_size"]):
        names, images = [], []
        for path in batch:
            try:
                images.append(decode(path, str(path)))
                names.append(str(path))
            except FreqFormerError as error:
                unreadable += 1
                print(f"freqformer: {error}; skipped", file=sys.stderr)
        predictions = predict(model, images, top_k=args["top_k"])
        for name, prediction in zip(names, predictions, strict=True):
            if args["json"]:
                print(json.dumps(asdict(replace(prediction, image=name))), flush=True)
            else:
                classes = zip(prediction.labels, prediction.probabilities, strict=True)
                rows.append([name, *(f"{label} {share:.1%}" for label, share in classes)])
    if rows:
        print_table(["image", *(f"{place}." for place in range(1, len(rows[0])))], rows)
    return 1 if unreadable else 0


def _bench(flags: "Flags", words: list[str]) -> int:
    from .bench import BENCHMARKS, run
    from .flags import Flags

    kind, *rest = words or ["--help"]
    benchmarks = dict(BENCHMARKS)
    if kind not in benchmarks:
        # Above the floor of the others: it needs what training needs.
        from .tools.loading import LoaderBenchmark

        benchmarks[LoaderBenchmark.kind] = LoaderBenchmark
    if kind in ("-h", "--help"):
        print(f"usage: {flags.parser.prog} {'|'.join(benchmarks)} [FLAGS]\n\n{flags.parser.description}\n")
        print("\n".join(f"  {name:<8} {config.__doc__}" for name, config in benchmarks.items()))
        return 0 if words else 2
    if kind not in benchmarks:
        raise FreqFormerError(f"there is no benchmark {kind!r}: choose one of {', '.join(benchmarks)}")
    config_type = benchmarks[kind]
    flags = Flags(f"{flags.parser.prog} {kind}", config_type.__doc__ or "")
    flags.fields(config_type)
    config = config_type(**flags.parse(rest))
    rows = run(config, shown("measuring"))
    print_table(*config.table(rows))
    print(f"{config.rows_path()}: {len(rows)} rows added; picture {config.picture_path()}")
    return 0


def _convert(flags: "Flags", words: list[str]) -> int:
    flags.positional("source", "weight file, run folder, hf-hub:USER/MODEL or local-dir:FOLDER")
    flags.positional("target", "the .safetensors file to write")
    flags.value("arch", str, "the model's name, for files that do not say it")
    flags.switch("overwrite", "replace an existing target")
    args = flags.parse(words)
    from .tools import convert

    print(convert(args["source"], args["target"], arch=args["arch"], overwrite=args["overwrite"]))
    return 0


def _average(flags: "Flags", words: list[str]) -> int:
    flags.value("output", str, "the .safetensors file to write", required=True)
    flags.switch("overwrite", "replace an existing file")
    flags.positional("sources", "weight files or runs' folders", several=True)
    args = flags.parse(words)
    from .tools import average

    print(average(args["sources"], args["output"], overwrite=args["overwrite"]))
    return 0


def _export(flags: "Flags", words: list[str]) -> int:
    flags.positional("target", "the .onnx or .pt2 file to write")
    flags.value("model_path", str, "a run's folder, or a .ckpt, .pth or .safetensors file")
    flags.value("arch", str, "the model's name, for bare weights; alone it exports fresh weights")
    flags.value("format", str, "onnx or torch-export", default="onnx")
    flags.value("input_size", int | tuple[int, int] | None, "image side in pixels, or [height, width]")
    flags.switch("dynamic_size", "one file for any height and width")
    flags.value("opset", int, "version of ONNX's operators", default=20)
    flags.value("dtype", str, "float32, float16 or int8", default="float32")
    flags.value("calibration", str, "folder of images that show int8 the range of every activation")
    flags.switch("features", "export the feature maps of every stage in place of logits")
    flags.switch("overwrite", "replace an existing target")
    args = flags.parse(words)
    from rich.console import Console

    from .tools import export

    screen = Console(stderr=True)
    with screen.status("loading") if screen.is_terminal else nullcontext() as status:
        progress = status.update if status else lambda step: None
        report = export(args.pop("model_path"), args.pop("target"), **args, progress=progress)
    print(report)
    return 0


def _labelmaps(flags: "Flags", words: list[str]) -> int:
    from .tools import LabelMapsConfig, make_label_maps

    flags.fields(LabelMapsConfig)
    config = LabelMapsConfig(**flags.parse(words))
    print(make_label_maps(config, shown("mapping")))
    return 0


def _quickstart(flags: "Flags", words: list[str]) -> int:
    flags.value("output_dir", str, "the run's folder", default="runs/quickstart")
    args = flags.parse(words)
    from .tools import quickstart

    quickstart(args["output_dir"])
    return 0


def _demo(flags: "Flags", words: list[str]) -> int:
    flags.positional("checkpoint", "run, checkpoint or .onnx file; by default the quickstart's", optional=True)
    flags.value("arch", str, "the model's name; only bare weights need it")
    flags.value("host", str, "where to listen; other machines reach all but loopback, with --auth", default="127.0.0.1")
    flags.value("port", int, "port to listen on; 0 is any free one", default=7860)
    flags.value("auth", str, "USER:PASSWORD that visitors need; or set FREQFORMER_DEMO_AUTH, which nobody else sees")
    args = flags.parse(words)
    if find_spec("gradio") is None:
        # Best told before anything is trained.
        raise MissingExtra("gradio", _EXTRAS["gradio"])
    from .demo import address, load, serve
    from .tools.quickstart import FOLDER, is_finished, quickstart

    where = address(args["host"], args["port"], args["auth"])
    checkpoint = args["checkpoint"] or FOLDER
    if args["checkpoint"] is None and is_finished():
        say([f"no checkpoint is named: the quickstart in {FOLDER} it is"])
    elif args["checkpoint"] is None:
        say([f"no checkpoint is named: training the quickstart first, into {FOLDER}"])
        quickstart()
    serve(load(checkpoint, args["arch"]), where)
    return 0


_COMMANDS: dict[str, tuple[Callable[["Flags", list[str]], int], str]] = {
    "quickstart": (_quickstart, "train, evaluate and predict on handwritten digits"),
    "models": (_models, "list the models and their cost"),
    "recipes": (_recipes, "list the papers' settings for training"),
    "train": (_train, "train a classifier, or go on with a run"),
    "adapt": (_adapt, "fine-tune a frozen encoder in the frequency domain, and by other small methods"),
    "eval": (_eval, "evaluate a checkpoint on a validation split"),
    "predict": (_predict, "classify images with a checkpoint"),
    "detect": (detect, "train, evaluate and use detectors of objects and their masks"),
    "segment": (segment, "train, evaluate and use models that give every pixel a class"),
    "visualize": (visualize, "draw what a model has learned and what it looks at"),
    "report": (report, "write a run's page again, or compare several runs on one"),
    "demo": (_demo, "show in a browser what a model sees in images and in their frequencies"),
    "bench": (_bench, "time operations, models, training steps, image sizes or loading against others"),
    "labelmaps": (_labelmaps, "make label maps of a training split with a teacher"),
    "convert": (_convert, "write any weight file as safetensors"),
    "average": (_average, "write the mean of several checkpoints of one model"),
    "export": (_export, "write a model as an ONNX or torch.export file, checked"),
}
