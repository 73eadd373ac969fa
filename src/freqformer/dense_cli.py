"""The commands of detection and segmentation: train, eval and predict of each."""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FreqFormerError
from .launchers import only_the_first_complains
from .settings import settings_of_a_run, speaks
from .terminal import in_batches, print_table, run_and_report

if TYPE_CHECKING:
    from .flags import Flags

Command = Callable[["Flags", list[str]], int]
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
    return _dispatch(flags, words, commands)


def segment(flags: "Flags", words: list[str]) -> int:
    """``freqformer segment train|eval|predict``."""
    commands = {
        "train": (_segment_train, "train a segmenter, or go on with a run"),
        "eval": (_segment_eval, "evaluate a segmenter on a split"),
        "predict": (_segment_predict, "give the pixels of images classes, as masks and overlays"),
    }
    return _dispatch(flags, words, commands)


def _dispatch(flags: "Flags", words: list[str], commands: Mapping[str, tuple[Command, str]]) -> int:
    from .flags import Flags

    prog = flags.parser.prog
    kind, *rest = words or ["--help"]
    if kind in ("-h", "--help"):
        print(f"usage: {prog} {'|'.join(commands)} [FLAGS]\n\n{flags.parser.description}\n")
        print("\n".join(f"  {name:<8} {summary}" for name, (_, summary) in commands.items()))
        return 0 if words else 2
    if kind not in commands:
        raise FreqFormerError(f"there is no command {prog.partition(' ')[2]} {kind}: choose {', '.join(commands)}")
    function, summary = commands[kind]
    return function(Flags(f"{prog} {kind}", summary), [_spelt(word) for word in rest])


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
    flags.switch("json", "print one JSON object")
    flags.positional("data", "the folder the data set lies in, as --data-path", optional=True)
    with only_the_first_complains():
        args = flags.parse(words)
    json = args.pop("json")
    data = args.pop("data")
    args["data_path"] = args["data_path"] if data is None else data
    config = config_type(**args)
    figures = evaluate(config)
    if not speaks():
        return 0
    if json:
        print(as_json(figures))
        return 0
    for what, count in figures["data_problems"].items():
        print(f"{count} {what}")
    rows = figures["per_class"]
    print_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
    skipped = f"; {figures['bad_images']} more could not be read" if figures["bad_images"] else ""
    where = "" if config.output_dir is None else f"; written to {config.output_dir}"
    speed = f"{figures['images']} images, {figures['images_per_second']:.1f} images/s"
    print(f"{_words(figures)}  {speed}{skipped}{where}")
    return 0


def _detect_predict(flags: "Flags", words: list[str]) -> int:
    flags.value("model_path", str, "a run's folder, or a .ckpt or .safetensors file", required=True)
    flags.value("output_dir", str, "the folder for the pictures and detections.json", default="detections")
    flags.value("score_thr", float, "leave out detections of smaller scores", default=0.5)
    flags.value("max_dets", int, "detections of an image at most; by default the model's")
    flags.value("batch_size", int, "images per step", default=4)
    _predicting(flags)
    args = flags.parse(words)
    if not 0 <= args["score_thr"] <= 1:
        raise FreqFormerError(f"--score-thr must be between 0 and 1, not {args['score_thr']}")
    from .checkpoints import write_whole
    from .dense import load_dense
    from .tables import as_json, write_json
    from .tasks.coco_scores import run_lengths
    from .tasks.dense_pictures import class_colours, draw_instances
    from .tools.dense import detect

    folder = _folder(args["output_dir"], "detections.json", overwrite=args["overwrite"])
    model, about = load_dense(args["model_path"], "detection")
    ids = dict(zip(model.label_names, about["category_ids"], strict=True))
    colours = class_colours(model.label_names)
    table: list[list[str]] = []
    written: list[dict[str, Any]] = []
    pictures = _Names(folder)
    readable = _Readable(args["images"], args["batch_size"])
    for names, images in readable:
        limits = {"score_thr": args["score_thr"], "max_dets": args["max_dets"]}
        every = detect(model, images, batch_size=len(images), **limits)
        for name, image, found in zip(names, images, every, strict=True):
            drawn = draw_instances(image, found.boxes, found.labels, found.scores, found.masks, colours=colours)
            target = pictures.new(name, ".png")
            write_whole(target, partial(drawn.save, format="PNG"))
            rows = []
            for place, (label, score) in enumerate(zip(found.labels, found.scores.tolist(), strict=True)):
                left, top, right, bottom = found.boxes[place].tolist()
                row = {"file_name": name, "category_id": ids[label], "category": label, "score": round(score, 6)}
                row["bbox"] = [round(side, 2) for side in (left, top, right - left, bottom - top)]
                if found.masks is not None:
                    row["segmentation"] = run_lengths(found.masks[place])
                rows.append(row)
            written += rows
            if args["json"]:
                print(as_json({"image": name, "picture": str(target), "detections": rows}), flush=True)
            counts = {label: found.labels.count(label) for label in dict.fromkeys(found.labels)}
            table.append([name, ", ".join(f"{count} {label}" for label, count in counts.items()) or "-", str(target)])
    write_json(folder / "detections.json", written)
    if table and not args["json"]:
        print_table(["image", f"found above {args['score_thr']}", "picture"], table)
    return 1 if readable.unreadable else 0


def _segment_predict(flags: "Flags", words: list[str]) -> int:
    flags.value("model_path", str, "a run's folder, or a .ckpt or .safetensors file", required=True)
    flags.value("output_dir", str, "the folder for the masks and overlays", default="masks")
    flags.value("shorter_side", int, "shorter side that images are resized to; by default the checkpoint's")
    flags.value("test_mode", str, "whole or slide; by default the checkpoint's")
    _predicting(flags)
    args = flags.parse(words)
    if args["test_mode"] not in (None, "whole", "slide"):
        raise FreqFormerError(f"--test-mode must be whole or slide, not {args['test_mode']}")
    import numpy as np
    from PIL import Image

    from .checkpoints import write_whole
    from .data import colour_mask, overlay
    from .dense import load_dense
    from .tables import as_json, write_json
    from .tools.dense import segment

    folder = _folder(args["output_dir"], "classes.json", overwrite=args["overwrite"])
    model, about = load_dense(args["model_path"], "segmentation")
    palette = np.array(about["palette"], dtype=np.uint8)
    masks = _Names(folder)
    table: list[list[str]] = []
    readable = _Readable(args["images"], 1)
    options = {"shorter_side": args["shorter_side"] or about["shorter_side"]}
    options |= {"test_mode": args["test_mode"] or about["test_mode"], "window": about["window"]}
    for names, images in readable:
        for name, image, mask in zip(names, images, segment(model, images, **options), strict=True):
            classes = mask.cpu().numpy()
            target = masks.new(name, ".png")
            coloured = colour_mask(classes, palette)
            write_whole(target, partial(coloured.save, format="PNG"))
            picture = Image.fromarray(overlay(np.asarray(image), classes, palette))
            beside = target.with_name(f"{target.stem}_overlay.png")
            write_whole(beside, partial(picture.save, format="PNG"))
            shares = np.bincount(classes.ravel(), minlength=len(model.label_names)) / classes.size
            found = {model.label_names[i]: round(float(shares[i]), 4) for i in np.argsort(-shares) if shares[i] > 0}
            if args["json"]:
                row = {"image": name, "mask": str(target), "overlay": str(beside), "shares": found}
                print(as_json(row), flush=True)
            most = ", ".join(f"{label} {share:.0%}" for label, share in list(found.items())[:5])
            table.append([name, most, str(target)])
    write_json(folder / "classes.json", model.label_names)
    if table and not args["json"]:
        print_table(["image", "classes", "mask"], table)
    return 1 if readable.unreadable else 0


def _predicting(flags: "Flags") -> None:
    flags.switch("overwrite", "replace the files of an earlier prediction there")
    flags.switch("json", "print one JSON object an image")
    flags.positional("images", "image files, or folders of images", several=True)


class _Readable:
    """Batches of (names, images) of those that can be read; the others are told and counted.

    Args:
        paths: files and folders.
        batch_size: images of a batch.
    """

    def __init__(self, paths: list[str], batch_size: int) -> None:
        if batch_size < 1:
            raise FreqFormerError(f"--batch-size must be at least 1, not {batch_size}")
        self.paths, self.batch_size, self.unreadable = paths, batch_size, 0

    def __iter__(self) -> Iterator[tuple[list[str], list[Any]]]:
        from .data import decode
        from .tools import find_images

        for batch in in_batches(list(find_images(self.paths)), self.batch_size):
            names, images = [], []
            for path in batch:
                try:
                    images.append(decode(path, str(path)))
                    names.append(str(path))
                except FreqFormerError as error:
                    self.unreadable += 1
                    print(f"freqformer: {error}; skipped", file=sys.stderr)
            if images:
                yield names, images


class _Names:
    """Names of new files in a folder, after images that may lie in several.

    Args:
        folder: where the files are to lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.given: set[str] = set()

    def new(self, image: str, ending: str) -> Path:
        """A name that no image before has been given."""
        stem = name = Path(image).stem
        number = 1
        while name in self.given or f"{name}_overlay" in self.given:
            number += 1
            name = f"{stem}-{number}"
        self.given |= {name, f"{name}_overlay"}
        return self.folder / f"{name}{ending}"


def _folder(path: str, mark: str, *, overwrite: bool) -> Path:
    """The folder to write into; one that holds a prediction already is not written over unasked."""
    folder = Path(path)
    if (folder / mark).exists() and not overwrite:
        raise FreqFormerError(f"{folder} holds another prediction: choose another --output-dir, or say --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FreqFormerError(f"cannot make {folder}: {error.strerror}; choose another --output-dir") from error
    return folder


def _words(figures: dict[str, Any]) -> str:
    """A line of scores; those of sizes are left to the files."""
    return "  ".join(
        f"{name} {value:.4f}"
        for name, value in figures.items()
        if name not in _UNITS and name.rpartition("_")[2] in ("AP", "AP50", "AP75", "mIoU", "accuracy", "loss")
    )


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
