"""The commands of detection and segmentation: train, eval and predict of each."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .errors import FreqFormerError
from .launchers import only_the_first_complains
from .settings import settings_of_a_run
from .terminal import dispatch, evaluate_and_print, print_table, run_and_report, shown, written

if TYPE_CHECKING:
    from .flags import Flags

# mmdetection's and mmsegmentation's names of flags.
_SAME = {"--work-dir": "--output-dir", "--work_dir": "--output-dir"}
_UNITS = ("images", "bad_images", "seconds", "images_per_second", "per_class", "data_problems")


def detect(flags: "Flags", words: list[str]) -> int:
    """``freqformer detect train|eval|predict``."""
    commands = {
        "train": (_detect_train, "train a detector, or go on with a run"),
        "eval": (_detect_eval, "evaluate a detector on a split: COCO's scores"),
        "predict": (_detect_predict, "find objects in images, draw them and write them down"),
    }
    return dispatch(flags, [_spelt(word) for word in words], commands)


def segment(flags: "Flags", words: list[str]) -> int:
    """``freqformer segment train|eval|predict``."""
    commands = {
        "train": (_segment_train, "train a segmenter, or go on with a run"),
        "eval": (_segment_eval, "evaluate a segmenter on a split"),
        "predict": (_segment_predict, "give the pixels of images classes, as masks and overlays"),
    }
    return dispatch(flags, [_spelt(word) for word in words], commands)


def _spelt(word: str) -> str:
    flag, equals, value = word.partition("=")
    return _SAME.get(flag, flag) + equals + value


def _detect_train(flags: "Flags", words: list[str]) -> int:
    from .tasks.detection import DetectionConfig

    with only_the_first_complains():
        config = DetectionConfig(**settings_of_a_run(flags, words, DetectionConfig))
    return run_and_report(config, _words)


def _segment_train(flags: "Flags", words: list[str]) -> int:
    from .tasks.segmentation import SegmentationConfig

    with only_the_first_complains():
        config = SegmentationConfig(**settings_of_a_run(flags, words, SegmentationConfig))
    return run_and_report(config, _words)


def _detect_eval(flags: "Flags", words: list[str]) -> int:
    from .engine.evaluate_dense import DetectionEvaluation, evaluate_detector

    return _evaluate(flags, words, DetectionEvaluation, evaluate_detector)


def _segment_eval(flags: "Flags", words: list[str]) -> int:
    from .engine.evaluate_dense import SegmentationEvaluation, evaluate_segmenter

    return _evaluate(flags, words, SegmentationEvaluation, evaluate_segmenter)


def _evaluate(flags: "Flags", words: list[str], config_type: type, evaluate: Callable[[Any], dict[str, Any]]) -> int:
    from .tables import as_json

    flags.fields(config_type)
    flags.defaults({"output_dir": "auto"})
    flags.switch("json", "print one JSON object")
    flags.positional("data", "the folder the data set lies in, as --data-path", optional=True)
    with only_the_first_complains():
        args = flags.parse(words)
    json = args.pop("json")
    data = args.pop("data")
    args["data_path"] = args["data_path"] if data is None else data

    def show(figures: dict[str, Any]) -> None:
        if json:
            print(as_json(figures), flush=True)
            return
        for what, count in figures["data_problems"].items():
            print(f"{count} {what}")
        rows = figures["per_class"]
        print_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
        skipped = f"; {figures['bad_images']} more could not be read" if figures["bad_images"] else ""
        speed = f"{figures['images']} images, {figures['images_per_second']:.1f} images/s"
        print(f"{_words(figures)}  {speed}{skipped}{written(figures)}", flush=True)

    return evaluate_and_print(evaluate, config_type(**args), show)


def _detect_predict(flags: "Flags", words: list[str]) -> int:
    flags.value("model_path", str, "a run's folder, or a .ckpt or .safetensors file", required=True)
    flags.value("output_dir", str, "the folder for the pictures and detections.json", default="detections")
    flags.value("score_thr", float, "leave out detections of smaller scores", default=0.5)
    flags.value("max_dets", int, "detections of an image at most; by default the model's")
    flags.value("batch_size", int, "images per step", default=4)
    args = _predicting(flags, words)
    from .tools.dense_files import detect_files

    def cells(row: dict[str, Any]) -> list[str]:
        counts = Counter(found["category"] for found in row["detections"])
        return [row["image"], ", ".join(f"{count} {label}" for label, count in counts.items()) or "-", row["picture"]]

    return _predict(detect_files, args, ["image", f"found above {args['score_thr']}", "picture"], cells)


def _segment_predict(flags: "Flags", words: list[str]) -> int:
    flags.value("model_path", str, "a run's folder, or a .ckpt or .safetensors file", required=True)
    flags.value("output_dir", str, "the folder for the masks and overlays", default="masks")
    flags.value("shorter_side", int, "shorter side that images are resized to; by default the checkpoint's")
    flags.value("test_mode", str, "whole or slide; by default the checkpoint's")
    args = _predicting(flags, words)
    from .tools.dense_files import segment_files

    def cells(row: dict[str, Any]) -> list[str]:
        most = [f"{label} {share:.0%}" for label, share in list(row["shares"].items())[:5]]
        return [row["image"], ", ".join(most), row["mask"]]

    return _predict(segment_files, args, ["image", "classes", "mask"], cells)


def _predicting(flags: "Flags", words: list[str]) -> dict[str, Any]:
    flags.switch("overwrite", "replace the files of an earlier prediction there")
    flags.switch("json", "print one JSON object an image")
    flags.positional("images", "image files, or folders of images", several=True)
    return flags.parse(words)


def _predict(
    find: Callable[..., Iterable[dict[str, Any]]],
    args: dict[str, Any],
    header: list[str],
    cells: Callable[[dict[str, Any]], list[str]],
) -> int:
    """Print a row for each image, and tell of those that cannot be read."""
    from .tables import as_json

    json = args.pop("json")
    skipped: list[FreqFormerError] = []

    def skip(error: FreqFormerError) -> None:
        skipped.append(error)
        print(f"freqformer: {error}; skipped", file=sys.stderr)

    table: list[list[str]] = []
    for row in find(**args, skip=skip, progress=shown("reading")):
        if json:
            print(as_json(row), flush=True)
        else:
            table.append(cells(row))
    if table:
        print_table(header, table)
    return 1 if skipped else 0


def _words(figures: dict[str, Any]) -> str:
    """A line of scores; those of sizes are left to the files."""
    return "  ".join(
        f"{name} {value:.4f}"
        for name, value in figures.items()
        if name not in _UNITS and name.rpartition("_")[2] in ("AP", "AP50", "AP75", "mIoU", "accuracy", "loss")
    )


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
