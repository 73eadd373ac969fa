"""Instances in COCO's format: where the files lie, what they say, and everything that may be wrong with them."""

import copy
import io
import json
import os
import pickle
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from freqformer.data import UnreadableImage, open_instances
from freqformer.data.coco import _varied_order
from freqformer.data.run_lengths import Outline, decode_masks, mask_area, mask_box, outline, unpack
from freqformer.errors import FreqFormerError, MissingExtra

SHARED = Path(os.environ.get("FREQFORMER_SHARED", Path(__file__).parents[3] / "shared")) / "data"
# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HEIGHT, WIDTH = 24, 40
TRIANGLE = [[4.0, 2.0, 20.0, 2.0, 20.0, 18.0]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [2 * HEIGHT + 3, 5, HEIGHT * (WIDTH - 2) - 8]}


def content():
    """Three images, two of them with instances: a polygon, runs, and a crowd."""
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in (7, 3, 5)]
    annotations = [
        {"id": 0, "image_id": 7, "category_id": 9, "bbox": [4, 2, 16, 16], "segmentation": TRIANGLE, "iscrowd": 0},
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [2, 3, 1, 5], "segmentation": RUNS, "area": 5.5},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [2, 3, 1, 5], "segmentation": RUNS, "iscrowd": 1},
        {"id": 3, "image_id": 3, "category_id": 9, "bbox": [1.25, 2.5, 7, 8], "segmentation": TRIANGLE},
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
    }


def put(root, made=None, file="instances_train.json", folder="images"):
    made = content() if made is None else made
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(made if isinstance(made, str) else json.dumps(made))
    (root / folder).mkdir(parents=True, exist_ok=True)
    for n in (7, 3, 5):
        Image.new("RGB", (WIDTH, HEIGHT), (n, n, n)).save(root / folder / f"{n}.png")
    return root


@pytest.mark.parametrize(
    ("file", "folder", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "val2017", "val"),
        ("instances_val.json", "images", "val"),
        ("instances_train2017.json", "images/train2017", "train"),
        ("annotations/instances_test.json", "test", "test"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("instances_night.json", "night", "night"),
        ("instances_train.json", "", "train"),
    ],
)
def test_layouts(tmp_path, file, folder, split):
    put(tmp_path, file=file, folder=folder)
    found = open_instances(tmp_path, split)
    assert found.root == str(tmp_path / folder)
    assert [found.name(i) for i in range(3)] == [str(tmp_path / folder / f"{n}.png") for n in (7, 3, 5)]
    assert [found.load(i)[0].getpixel((0, 0))[0] for i in range(3)] == [7, 3, 5]


def test_files_anywhere(tmp_path):
    made = content()
    for image in made["images"]:
        image["file_name"] = f"a/b/{image['file_name']}"
    put(tmp_path, made, file="x/my.json", folder="y/a/b")
    found = open_instances(None, "train", annotations=tmp_path / "x/my.json", images=tmp_path / "y")
    assert found.load(2)[0].size == (WIDTH, HEIGHT)
    assert open_instances(tmp_path / "y", "val", annotations=tmp_path / "x/my.json").root == str(tmp_path / "y")
    with pytest.raises(FreqFormerError, match=r"none of the listed images is there, the first is 'a/b/7.png'"):
        open_instances(None, "train", annotations=tmp_path / "x/my.json", images=tmp_path / "z")
    with pytest.raises(FreqFormerError, match=r"there is no annotation file .*z.json"):
        open_instances(None, "train", annotations=tmp_path / "z.json")
    with pytest.raises(FreqFormerError, match=r"no annotations of 'test' \(looked for annotations/instances_test2017"):
        open_instances(tmp_path, "test")
    with pytest.raises(FreqFormerError, match="give --data-path"):
        open_instances(None, "test")
    with pytest.raises(FreqFormerError, match="does not exist; check --data-path"):
        open_instances(tmp_path / "zzz", "test")


def test_a_target(tmp_path):
    found = pickle.loads(pickle.dumps(open_instances(put(tmp_path), "train", masks=True)))
    assert (found.classes, found.category_ids) == (["cat", "dog"], [2, 9])
    assert (len(found), found.size(1), found.image_id(1)) == (3, (HEIGHT, WIDTH), 3)
    assert found.problems == {"images without annotations (kept)": 1}
    _, target = found.load(0)
    assert target["boxes"].tolist() == [[4, 2, 20, 18], [2, 3, 3, 8]]
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].canvas_size == (HEIGHT, WIDTH)
    assert target["labels"].tolist() == [1, 0]
    assert target["labels"].dtype == torch.int64
    assert target["masks"].shape == (2, HEIGHT, WIDTH)
    assert target["masks"].dtype == torch.uint8
    assert target["masks"][1].nonzero().tolist() == [[row, 2] for row in range(3, 8)]
    # The crowd is no instance.
    assert found.load(1)[1]["labels"].tolist() == [1]
    _, none = found.load(2)
    assert [none[key].shape for key in ("boxes", "labels", "masks")] == [(0, 4), (0,), (0, HEIGHT, WIDTH)]
    assert "masks" not in open_instances(tmp_path, "train").load(0)[1]


def test_the_ground_truth(tmp_path):
    found = open_instances(put(tmp_path), "train", masks=True)
    truth = found.ground_truth()
    made = content()
    assert [image["id"] for image in truth["images"]] == [7, 3, 5]
    assert truth["categories"] == [{"id": 2, "name": "cat"}, {"id": 9, "name": "dog"}]
    assert [one["id"] for one in truth["annotations"]] == [1, 2, 3, 4]
    for one, own in zip(truth["annotations"], made["annotations"], strict=True):
        assert all(one[key] == own[key] for key in ("image_id", "category_id", "bbox", "segmentation"))
    drawn = found.load(0)[1]["masks"][0].sum()
    assert [one["area"] for one in truth["annotations"]] == [drawn, 5.5, 5, drawn]
    assert [one["iscrowd"] for one in truth["annotations"]] == [0, 0, 1, 0]
    part = found.ground_truth([1])
    assert [image["id"] for image in part["images"]] == [3]
    assert [one["id"] for one in part["annotations"]] == [1, 2]
    without = open_instances(tmp_path, "train").ground_truth()["annotations"]
    assert [one["area"] for one in without] == [256, 5.5, 5, 56]
    assert not any("segmentation" in one for one in without)
    json.dumps(truth)


def test_masks_need_a_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    put(tmp_path)
    assert len(open_instances(tmp_path, "train")) == 3
    with pytest.raises(MissingExtra, match=r"pip install 'freqformer\[dense\]'"):
        open_instances(tmp_path, "train", masks=True)


def test_ids_that_are_strings(tmp_path):
    made = content()
    for image in made["images"]:
        image["id"] = {7: "a", 3: 4, 5: "x"}[image["id"]]
    for one in made["annotations"]:
        one["image_id"] = {7: "a", 3: 4}[one["image_id"]]
    found = open_instances(put(tmp_path, made), "train")
    assert [found.image_id(i) for i in range(3)] == ["a", 4, "x"]
    truth = found.ground_truth()
    assert [image["id"] for image in truth["images"]] == [found.number(i) for i in range(3)] == [1, 2, 3]
    assert [one["image_id"] for one in truth["annotations"]] == [1, 1, 2, 2]


def test_classes_of_a_model(tmp_path):
    put(tmp_path)
    found = open_instances(tmp_path, "train", classes=["dog", "bird", "cat"])
    assert (found.classes, found.category_ids) == (["dog", "bird", "cat"], [9, 10, 2])
    assert found.load(0)[1]["labels"].tolist() == [0, 2]
    assert [one["category_id"] for one in found.ground_truth([0])["annotations"]] == [9, 2]
    with pytest.raises(FreqFormerError, match=r"annotations of 'cat', which is not among the model's 2 classes \(dog,"):
        open_instances(tmp_path, "train", classes=["dog", "bird"])
    # A category that nothing belongs to is no obstacle.
    made = content()
    made["categories"].append({"id": 0, "name": "things"})
    put(tmp_path, made)
    assert open_instances(tmp_path, "train").classes == ["things", "cat", "dog"]
    assert open_instances(tmp_path, "train", classes=["cat", "dog"]).category_ids == [2, 9]


def test_two_categories_of_one_name(tmp_path):
    made = content()
    made["categories"][0]["name"] = "cat"
    assert open_instances(put(tmp_path, made), "train").classes == ["cat (2)", "cat (9)"]


def test_a_limit(tmp_path):
    put(tmp_path)
    one = open_instances(tmp_path, "train", limit=1)
    two = open_instances(tmp_path, "train", limit=2, masks=True)
    # Both classes are in image 3 as well as in 7.
    assert one.image_id(0) == two.image_id(0) in (3, 7)
    assert len(one.ground_truth()["annotations"]) == 2
    assert len(two) == 2
    whole = open_instances(tmp_path, "train", masks=True)
    for i in range(2):
        same = next(k for k in range(3) if whole.image_id(k) == two.image_id(i))
        expected, found = whole.load(same)[1], two.load(i)[1]
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert len(open_instances(tmp_path, "train", limit=99)) == 3
    with pytest.raises(FreqFormerError, match="at least 1, not 0"):
        open_instances(tmp_path, "train", limit=0)


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 5)), max_size=80))
def test_the_order_has_every_class_early(count, pairs):
    pairs = [(row, label) for row, label in pairs if row < count]
    rows, labels = (np.array(column, dtype=np.int64) for column in (zip(*pairs, strict=True) if pairs else ((), ())))
    order = _varied_order(count, rows, labels)
    assert sorted(order.tolist()) == list(range(count))
    wanted = len(set(labels.tolist())) + (len(set(rows.tolist())) < count)
    first = set(order[:wanted].tolist())
    assert {label for row, label in pairs if row in first} == set(labels.tolist())
    if len(set(rows.tolist())) < count:
        assert first - set(rows.tolist())


def broken(change):
    made = content()
    change(made)
    return made


def first(**fields):
    return lambda made: made["annotations"][0].update(fields)


def lacking(key, place=0):
    return lambda made: made["annotations"][place].pop(key)


REFUSED = {
    "not JSON": ("{'images': 3", r"cannot read .* as JSON"),
    "binary": ("\x00\x01", "cannot read"),
    "deep": ("[" * 200_000, "cannot read"),
    "a list": ([], "must be an object, not a list"),
    "no images": (broken(lambda made: made.pop("images")), "it has no 'images', which must be a list"),
    "no annotations": (broken(lambda made: made.pop("annotations")), "it has no 'annotations'"),
    "no categories": (broken(lambda made: made.pop("categories")), "it has no 'categories'"),
    "images of another kind": (broken(lambda made: made.update(images={})), "'images' is an object"),
    "empty images": (broken(lambda made: made.update(images=[])), "it lists no images"),
    "nameless images": (broken(lambda made: made.update(images=[{"id": 1}, 3])), "none of its 2 images has an id"),
    "empty categories": (broken(lambda made: made.update(categories=[])), "it lists no categories"),
    "a category without id": (broken(lambda made: made["categories"][0].pop("id")), "needs an integer id and a name"),
    "a nameless category": (broken(lambda made: made["categories"][0].pop("name")), "needs an integer id and a name"),
    "a category twice": (
        broken(lambda made: made["categories"][0].update(id=2)),
        "category id 2 stands for both 'dog' and 'cat'",
    ),
    "an image id twice": (broken(lambda made: made["images"][0].update(id=5)), "5 stands for both '7.png' and '5.png'"),
    "nothing usable": (
        broken(lambda made: [one.update(category_id=1) for one in made["annotations"]]),
        r"none of its 4 annotations is usable: 4 annotations of unknown categories",
    ),
    "other images": (
        broken(lambda made: [one.update(file_name="x" + one["file_name"]) for one in made["images"]]),
        "none of the listed images is there, the first is 'x7.png'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_files_are_refused(tmp_path, case):
    made, message = REFUSED[case]
    put(tmp_path, made)
    with pytest.raises(FreqFormerError, match=message) as caught:
        open_instances(tmp_path, "train")
    assert "\n" not in str(caught.value)


# What becomes of the first annotation: the phrase that is counted.
DROPPED = {
    "another image": (first(image_id=99), "annotations of images that are not listed"),
    "an image id of another kind": (first(image_id=[7]), "annotations of images that are not listed"),
    "no image": (lacking("image_id"), "annotations that name no image"),
    "no object": (lambda made: made["annotations"].__setitem__(0, 3), "annotations that name no image"),
    "unknown category": (first(category_id=1), "annotations of unknown categories"),
    "no category": (lacking("category_id"), "annotations of unknown categories"),
    "zero width": (first(bbox=[4, 2, 0, 9]), "boxes of zero or negative size"),
    "negative height": (first(bbox=[4, 2, 3, -9]), "boxes of zero or negative size"),
    "NaN": (first(bbox=[4, float("nan"), 3, 9]), "boxes that are not four finite numbers"),
    "infinite": (first(bbox=[4, 2, float("inf"), 9]), "boxes that are not four finite numbers"),
    "huge": (first(bbox=[4, 2, 10**400, 9]), "boxes that are not four finite numbers"),
    "three numbers": (first(bbox=[4, 2, 3]), "boxes that are not four finite numbers"),
    "words": (first(bbox=["4", "2", "3", "9"]), "boxes that are not four finite numbers"),
    "an object as box": (first(bbox={"x": 4}), "boxes that are not four finite numbers"),
    "outside": (first(bbox=[WIDTH, 2, 3, 3]), "boxes outside their image"),
    "above": (first(bbox=[2, -9, 3, 9]), "boxes outside their image"),
    "nothing in float32": (first(bbox=[30, 2, 1e-9, 3]), "boxes outside their image"),
}
MASKS_DROPPED = {
    "no segmentation": (lacking("segmentation"), "annotations without a segmentation"),
    "empty": (first(segmentation=[]), "annotations without a segmentation"),
    "two points": (first(segmentation=[[1, 2, 3, 4]]), "annotations with polygons of fewer than 3 points"),
    "an odd number": (first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotations with polygons of fewer than 3 points"),
    "an empty polygon": (first(segmentation=[[]]), "annotations with polygons of fewer than 3 points"),
    "words": (first(segmentation=[["a", 2, 3, 4, 5, 6]]), "annotations with a segmentation of no known form"),
    "a word": (first(segmentation="abc"), "annotations with a segmentation of no known form"),
    "deeper": (first(segmentation=[[[1, 2, 3, 4, 5, 6]]]), "annotations with a segmentation of no known form"),
    "NaN": (first(segmentation=[[0, 0, 5, float("nan"), 5, 5]]), "annotations with polygons that are not finite"),
    "infinite": (first(segmentation=[[0, 0, 5, -float("inf"), 5, 5]]), "annotations with polygons that are not finite"),
    "huge": (first(segmentation=[[0, 0.5, 5, 10**400, 5, 5]]), "annotations with polygons that are not finite"),
    "far": (first(segmentation=[[0, 0, 5, 99_999, 5, 5]]), "annotations with polygons far outside the image"),
    "no size": (first(segmentation={"counts": "abc"}), "annotations with a run-length mask of no size"),
    "another size": (
        first(segmentation={"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}),
        "annotations with a mask of another size than the image",
    ),
    **{
        f"runs {counts!r}": (
            first(segmentation={"size": [HEIGHT, WIDTH], "counts": counts}),
            "annotations with a damaged run-length mask",
        )
        for counts in ([3, 5], [3, -3, HEIGHT * WIDTH], [], ["3"], None, "", "abc", "04", "\x00\x01", "\x7f", "ééé", 7)
    },
}


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("case", DROPPED)
def test_wrong_annotations_are_dropped_and_counted(tmp_path, case, masks):
    change, phrase = DROPPED[case]
    found = open_instances(put(tmp_path, broken(change)), "train", masks=masks)
    assert found.problems == {phrase: 1, "images without annotations (kept)": 1}
    assert found.load(0)[1]["labels"].tolist() == [0]
    assert [one["category_id"] for one in found.ground_truth([0])["annotations"]] == [2]


@pytest.mark.parametrize("case", MASKS_DROPPED)
def test_wrong_masks_are_dropped_and_counted(tmp_path, case):
    change, phrase = MASKS_DROPPED[case]
    found = open_instances(put(tmp_path, broken(change)), "train", masks=True)
    assert found.problems == {phrase: 1, "images without annotations (kept)": 1}
    assert found.load(0)[1]["labels"].tolist() == [0]
    assert [one["category_id"] for one in found.ground_truth([0])["annotations"]] == [2]
    # Boxes alone are not concerned.
    assert open_instances(tmp_path, "train").load(0)[1]["labels"].tolist() == [1, 0]


def test_boxes_are_cut_to_the_image(tmp_path):
    made = broken(first(bbox=[-3, 20.5, 9, 9]))
    found = open_instances(put(tmp_path, made), "train")
    assert found.problems["boxes that reach outside their image (cut there for training)"] == 1
    assert found.load(0)[1]["boxes"][0].tolist() == [0, 20.5, 6, HEIGHT]
    assert found.ground_truth()["annotations"][0]["bbox"] == [-3, 20.5, 9, 9]
    rounded = broken(first(bbox=[0, 0, WIDTH + 0.004, HEIGHT]))
    found = open_instances(put(tmp_path, rounded), "train")
    assert found.problems == {"images without annotations (kept)": 1}
    assert found.load(0)[1]["boxes"][0].tolist() == [0, 0, WIDTH, HEIGHT]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("box", [None, []])
def test_a_missing_box_is_taken_from_the_mask(tmp_path, masks, box):
    made = broken(lambda made: (made["annotations"][1].update(bbox=box), made["annotations"][0].pop("bbox")))
    found = open_instances(put(tmp_path, made), "train", masks=masks)
    (drawn,) = decode_masks([TRIANGLE], (HEIGHT, WIDTH))
    rows, columns = drawn.nonzero()
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found.load(0)[1]["boxes"].tolist() == [box, [2, 3, 3, 8]]
    assert found.ground_truth([0])["annotations"][1]["bbox"] == [2, 3, 1, 5]
    made = broken(lambda made: (made["annotations"][0].pop("bbox"), made["annotations"][0].pop("segmentation")))
    found = open_instances(put(tmp_path, made), "train", masks=masks)
    assert found.problems["annotations without a segmentation"] == 1


def test_polygons_that_can_be_mended(tmp_path):
    made = broken(first(segmentation=[TRIANGLE[0], [1, 2, 3, 4]]))
    made["annotations"][3]["segmentation"] = TRIANGLE[0]
    found = open_instances(put(tmp_path, made), "train", masks=True)
    assert found.problems["annotations with polygons of fewer than 3 points beside others (those left out)"] == 1
    assert torch.equal(found.load(0)[1]["masks"][0], found.load(1)[1]["masks"][0])
    assert [found.ground_truth()["annotations"][k]["segmentation"] for k in (0, 3)] == [TRIANGLE, TRIANGLE]


def test_a_mask_without_a_pixel(tmp_path):
    between = [[4.1, 2.1, 4.2, 2.1, 4.2, 2.2]]
    found = open_instances(put(tmp_path, broken(first(segmentation=between))), "train", masks=True)
    _, target = found.load(0)
    assert [target[key].shape[0] for key in ("boxes", "labels", "masks")] == [1, 1, 1]
    assert target["labels"].tolist() == [0]


def test_images_listed_twice_and_nameless(tmp_path):
    made = content()
    made["images"] += [copy.deepcopy(made["images"][0]), {"id": 88}, {"file_name": "3.png"}, "x"]
    made["images"] += [{"id": 89, "file_name": "a\0b"}, {"id": 90, "file_name": "\ud800"}, {"id": 91, "file_name": 7}]
    found = open_instances(put(tmp_path, made), "train")
    assert len(found) == 3
    assert found.problems["images listed twice"] == 1
    assert found.problems["images without an id or a file name"] == 6


def test_sizes_that_the_file_does_not_say(tmp_path):
    made = content()
    for image, size in zip(made["images"], [{}, {"width": "40", "height": -1}, {"width": WIDTH}], strict=True):
        image.pop("width")
        image.pop("height")
        image.update(size)
    put(tmp_path, made)
    (tmp_path / "images/3.png").unlink()
    found = open_instances(tmp_path, "train", masks=True)
    assert [found.size(i) for i in range(3)] == [(HEIGHT, WIDTH), None, (HEIGHT, WIDTH)]
    assert found.problems["images without width and height (taken from the image)"] == 3
    assert found.problems["annotations of images of unknown size"] == 2
    assert len(found.load(0)[1]["labels"]) == 2
    with pytest.raises(UnreadableImage):
        found.load(1)
    found.ground_truth()


def test_one_bad_image(tmp_path):
    put(tmp_path)
    (tmp_path / "images/7.png").unlink()
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(tmp_path / "images/3.png")
    (tmp_path / "images/5.png").write_bytes(b"abc")
    found = open_instances(tmp_path, "train", masks=True)
    for i, reason in enumerate(("No such file", "it is 41 x 24 pixels, the annotations say 40 x 24", "not an image")):
        with pytest.raises(UnreadableImage, match=reason):
            found.load(i)


@pytest.mark.parametrize("stored", [False, True])
def test_images_that_lie_on_their_side(tmp_path, stored):
    """The annotations' size says whether who made them saw the image turned."""
    put(tmp_path)
    made = content()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[:, 30:] = 255
    Image.fromarray(pixels).save(tmp_path / "images/5.png", exif=exif)
    if not stored:
        made["images"][2].update(width=HEIGHT, height=WIDTH)
    (tmp_path / "instances_train.json").write_text(json.dumps(made))
    image, target = open_instances(tmp_path, "train").load(2)
    assert image.size == ((WIDTH, HEIGHT) if stored else (HEIGHT, WIDTH))
    assert target["boxes"].canvas_size == image.size[::-1]
    assert image.getpixel((35, 3) if stored else (3, 35)) == (255, 255, 255)
    # Without a size in the file it is taken upright.
    for key in ("width", "height"):
        made["images"][2].pop(key)
    (tmp_path / "instances_train.json").write_text(json.dumps(made))
    assert open_instances(tmp_path, "train").size(2) == (WIDTH, HEIGHT)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 50) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner),
    max_leaves=8,
)


@given(
    st.sampled_from(["bbox", "segmentation", "image_id", "category_id", "iscrowd", "area", "id"]),
    JSON_VALUES,
    st.sampled_from(["id", "file_name", "width", "height"]),
    JSON_VALUES,
)
def test_whatever_stands_there_nothing_crashes(tmp_path_factory, field, value, image_field, image_value):
    root = tmp_path_factory.mktemp("any")
    made = content()
    made["annotations"][0][field] = value
    made["images"][0][image_field] = image_value
    put(root, made)
    try:
        found = open_instances(root, "train", masks=True)
    except FreqFormerError:
        return
    for i in range(len(found)):
        try:
            _, target = found.load(i)
        except UnreadableImage:
            continue
        boxes = target["boxes"]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert len(boxes) == len(target["labels"]) == len(target["masks"])
    json.dumps(found.ground_truth(), allow_nan=False)


def counted(mask, compressed):
    """A mask in runs, as pycocotools or by hand."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    runs = [0, *runs] if flat[0] else runs
    if not compressed:
        return {"size": list(mask.shape), "counts": runs}
    coder = pytest.importorskip("pycocotools.mask")
    packed = coder.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


@pytest.mark.parametrize("compressed", [False, True])
@given(data=st.data())
def test_runs_are_what_was_drawn(compressed, data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    density = data.draw(st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]))
    seed = data.draw(st.integers(0, 999))
    mask = (np.random.RandomState(seed).rand(height, width) < density).astype(np.uint8)
    made = outline(counted(mask, compressed))
    assert isinstance(made, Outline)
    assert made.size == (height, width)
    (drawn,) = decode_masks([unpack(made.packed)], (height, width))
    assert (drawn == mask).all()
    assert mask_area(unpack(made.packed), (height, width)) == mask.sum()
    box = mask_box(unpack(made.packed), (height, width))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        assert box is None
    else:
        assert box == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]


@given(st.lists(st.floats(-60, 99, width=32), min_size=6, max_size=16).filter(lambda p: len(p) % 2 == 0))
def test_polygons_are_drawn_as_pycocotools_does(polygon):
    coder = pytest.importorskip("pycocotools.mask")
    made = outline([polygon])
    (drawn,) = decode_masks([unpack(made.packed)], (HEIGHT, WIDTH))
    assert (drawn == coder.decode(coder.merge(coder.frPyObjects([polygon], HEIGHT, WIDTH)))).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data under shared/data are not here")
class TestRealData:
    def test_bccd(self):
        for split, images, counts in (
            ("train", 205, [2381, 214, 209]),
            ("val", 87, [967, 87, 83]),
            ("test", 72, [805, 71, 69]),
        ):
            found = open_instances(SHARED / "bccd", split)
            assert found.classes == ["RBC", "WBC", "Platelets"]
            assert len(found) == images
            assert np.bincount(found.labels).tolist() == counts
            assert not found.problems
        _, target = open_instances(SHARED / "bccd", "train").load(0)
        assert target["boxes"][0].tolist() == [68, 315, 286, 480]
        few = open_instances(SHARED / "bccd", "train", limit=3)
        assert set(few.labels.tolist()) == {0, 1, 2}

    @pytest.mark.parametrize(
        ("name", "split", "images", "instances", "crowds", "empty"),
        [
            ("coco-mini", "train", 100, 740, 6, 2),
            ("coco-mini", "val", 100, 707, 5, 0),
            ("dsb2018-nuclei", "train", 268, 7459, 0, 0),
            ("dsb2018-nuclei", "val", 66, 2084, 0, 0),
        ],
    )
    def test_masks(self, name, split, images, instances, crowds, empty):
        found = open_instances(SHARED / name, split, masks=True)
        assert (len(found), len(found.labels), found.crowd.sum()) == (images, instances + crowds, crowds)
        assert found.problems == ({"images without annotations (kept)": empty} if empty else {})
        coder = pytest.importorskip("pycocotools.mask")
        for i in range(0, images, 12):
            _, target = found.load(i)
            truth = [one for one in found.ground_truth([i])["annotations"] if not one["iscrowd"]]
            assert len(truth) == len(target["masks"])
            for one, mask, box in zip(truth, target["masks"], target["boxes"], strict=True):
                assert (mask.numpy() == coder.decode(one["segmentation"])).all()
                left, top, width, height = one["bbox"]
                assert box.tolist() == [left, top, left + width, top + height]

    @pytest.mark.parametrize("kind", ["bbox", "segm"])
    def test_the_precision_is_that_of_the_original_file(self, kind):
        """Results of the mini-COCO, some of them moved, score alike against the file and against what is read of it."""
        coco = pytest.importorskip("pycocotools.coco")
        cocoeval = pytest.importorskip("pycocotools.cocoeval")
        found = open_instances(SHARED / "coco-mini", "val", masks=True)
        random = np.random.RandomState(0)
        truth = found.ground_truth()
        results = []
        for one in truth["annotations"]:
            box = (np.array(one["bbox"]) * random.uniform(0.8, 1.2, 4)).tolist()
            score = float(random.rand())
            result = {"image_id": one["image_id"], "category_id": one["category_id"], "score": score}
            # With a box a result counts by its box alone.
            results.append(
                {**result, "bbox": box} if kind == "bbox" else {**result, "segmentation": one["segmentation"]}
            )
        scores = []
        with redirect_stdout(io.StringIO()):
            for source in (json.loads((SHARED / "coco-mini/instances_val2017.json").read_text()), truth):
                reference = coco.COCO()
                reference.dataset = source
                reference.createIndex()
                evaluation = cocoeval.COCOeval(reference, reference.loadRes(copy.deepcopy(results)), kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                scores.append(evaluation.stats.tolist())
            faster = pytest.importorskip("faster_coco_eval")
            reference = faster.COCO(truth)
            evaluation = faster.COCOeval_faster(reference, reference.loadRes(results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert scores[0] == scores[1]
        assert scores[0] == pytest.approx(list(evaluation.stats)[:12])
        assert 0.1 < scores[0][0] <= 1
