import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from freqformer.data import IGNORED, UnreadableImage, open_scenes
from freqformer.data.class_names import default_palette, places_among, read_class_file
from freqformer.errors import FreqFormerError

SHARED = Path(__file__).parents[3] / "shared/data"
NAMES = ["sky", "road", "car", "void"]
COLOURS = [(128, 128, 128), (128, 64, 128), (64, 0, 128), (0, 0, 0)]
VALUES = np.arange(24, dtype=np.uint8).reshape(4, 6) % 4


def put_image(path, shape=(4, 6), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*shape, 3), 90, np.uint8)).save(path, **options)
    return path


def put_mask(path, values=VALUES, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **options)
    return path


def put_pair(images, masks, name="a", values=VALUES, mask_name=None):
    put_image(images / f"{name}.jpg")
    put_mask(masks / f"{mask_name or name}.png", values)


@pytest.fixture
def root(tmp_path):
    """CamVid's layout with four classes, of which 3 is void."""
    for split in ("train", "val"):
        for name in "abc":
            put_pair(tmp_path / split / "images", tmp_path / split / "masks", name)
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return tmp_path


def mask_of(scenes, i=0):
    return np.asarray(scenes.load(i)[1])


def one(root, values, lines="sky\nroad\ncar\nvoid\n", **given):
    """The mask that a data set of one image with these pixels gives."""
    put_image(root / "train/images/a.jpg", np.asarray(values).shape[:2])
    put_mask(root / "train/masks/a.tif", values)
    (root / "classes.txt").write_text(lines)
    return mask_of(open_scenes(root, "train", **given))


@pytest.mark.parametrize(
    ("images", "masks", "split"),
    [
        ("train/images", "train/masks", "train"),
        ("train/images", "train/labels", "training"),
        ("images/val", "masks/val", "val"),
        ("images/val", "labels/val", "validation"),
        ("images/validation", "annotations/validation", "val"),
        ("images/training", "labels/training", "train"),
        ("img_dir/test", "ann_dir/test", "test"),
        ("train", "trainannot", "train"),
        ("val", "val_labels", "validation"),
        ("images/night", "annotations/night", "night"),
    ],
)
def test_layouts(tmp_path, images, masks, split):
    for name in ("b", "sub/c", "a"):
        put_pair(tmp_path / images, tmp_path / masks, name)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    scenes = open_scenes(tmp_path, split)
    assert [Path(scenes.name(i)).name for i in range(len(scenes))] == ["a.jpg", "b.jpg", "c.jpg"]
    assert scenes.root == str(tmp_path / images)
    assert scenes.classes == NAMES
    assert scenes.problems == {}
    image, mask = scenes.load(2)
    assert image.mode == "RGB"
    assert isinstance(mask, tv_tensors.Mask)
    np.testing.assert_array_equal(mask, VALUES)


def test_explicit_folders(tmp_path, root):
    flags = {"images": root / "val/images", "masks": str(root / "val/masks")}
    assert open_scenes(root, "train", **flags).classes == NAMES
    apart = open_scenes(None, "val", **flags, class_file=root / "classes.txt")
    assert apart.classes == NAMES
    assert apart.name(0) == str(root / "val/images/a.jpg")


@pytest.mark.parametrize("suffix", ["_L", "_mask", "_labelIds", "-gt", "_gtFine_labelIds"])
def test_masks_may_have_a_suffix(tmp_path, suffix):
    for name in ("x_1", "x_10", "x"):
        put_pair(tmp_path / "train", tmp_path / "train_labels", name, mask_name=name + suffix)
    put_mask(tmp_path / f"train_labels/y{suffix}.png")
    put_image(tmp_path / "train/z.jpg")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    scenes = open_scenes(tmp_path, "train")
    assert [Path(scenes.name(i)).stem for i in range(len(scenes))] == ["x", "x_1", "x_10"]
    assert scenes.problems == {"images without a mask": 1, "masks without an image": 1}


def test_a_mask_is_never_taken_for_another_image(tmp_path):
    put_image(tmp_path / "train/images/1.jpg")
    put_mask(tmp_path / "train/masks/10.png")
    with pytest.raises(FreqFormerError, match=r"none of the 1 images .* has a mask in .*such as 1\.png.*found 10\.png"):
        open_scenes(tmp_path, "train")


def test_files_that_are_left_out_are_counted(root):
    put_image(root / "train/images/d.jpg")
    put_mask(root / "train/masks/e.png")
    put_mask(root / "train/masks/a.bmp", VALUES * 0)
    (root / "train/masks/a.json").write_text("{}")
    scenes = open_scenes(root, "train")
    assert len(scenes) == 3
    assert list(scenes.problems.values()) == [1, 1, 1]
    np.testing.assert_array_equal(mask_of(scenes), VALUES)


def test_ade20k(tmp_path):
    values = np.array([[0, 1, 2, 150, 255]], dtype=np.uint8)
    for split in ("training", "validation"):
        put_image(tmp_path / f"images/{split}/a.jpg", values.shape)
        put_mask(tmp_path / f"annotations/{split}/a.png", values)
    rows = [f"{i}\t0.1\t10\t1\t0\tname {i}, synonym" for i in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]))
    scenes = open_scenes(tmp_path, "train")
    assert len(scenes.classes) == 150
    assert scenes.classes[149] == "name 150"
    assert mask_of(scenes).tolist() == [[IGNORED, 0, 1, 149, IGNORED]]
    # By other names for the classes, too.
    (tmp_path / "objectInfo150.txt").unlink()
    (tmp_path / "classes.txt").write_text("\n".join(f"c{i}" for i in range(150)))
    assert mask_of(open_scenes(tmp_path, "val")).tolist() == [[IGNORED, 0, 1, 149, IGNORED]]


def test_a_class_file_of_other_classes_in_ade20ks_folders_counts_from_0(tmp_path):
    put_pair(tmp_path / "images/training", tmp_path / "annotations/training")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    np.testing.assert_array_equal(mask_of(open_scenes(tmp_path, "train")), VALUES)


def paletted(values):
    image = Image.fromarray(values)
    image.putpalette(bytes(range(30)))
    return image


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(VALUES),
        paletted(VALUES),
        Image.fromarray(VALUES.astype(np.uint16)),
        Image.fromarray(VALUES.astype(np.int32)),
        Image.merge("LA", [Image.fromarray(VALUES)] * 2),
        Image.fromarray(np.array(COLOURS, np.uint8)[VALUES]),
        Image.fromarray(np.array(COLOURS, np.uint8)[VALUES]).convert("RGBA"),
    ],
    ids=lambda mask: mask.mode,
)
def test_kinds_of_masks(tmp_path, mask):
    lines = "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in zip(NAMES, COLOURS, strict=True))
    np.testing.assert_array_equal(one(tmp_path, mask, lines), VALUES)


def test_one_bit_masks(tmp_path):
    assert one(tmp_path, Image.fromarray(VALUES % 2 == 1), "no\nyes").tolist() == (VALUES % 2).tolist()


def test_sixteen_bits_may_ignore_65535(tmp_path):
    values = np.array([[0, 65535, 2]], dtype=np.uint16)
    assert one(tmp_path, values, ignore_index=65535).tolist() == [[0, IGNORED, 2]]


@pytest.mark.parametrize(("ignored", "expected"), [(3, [0, 1, 2, 255]), (0, [255, 0, 1, 2]), (1, [0, 255, 1, 2])])
@pytest.mark.parametrize("in_colour", [False, True])
def test_the_ignored_class_leaves_the_list(tmp_path, ignored, expected, in_colour):
    lines = "".join(f"{name} {r} {g} {b}\n" for name, (r, g, b) in zip(NAMES, COLOURS, strict=True))
    values = np.array(COLOURS, np.uint8)[[[0, 1, 2, 3]]] if in_colour else np.arange(4, dtype=np.uint8)[None]
    assert one(tmp_path, values, lines, ignore_index=ignored).tolist() == [expected]
    scenes = open_scenes(tmp_path, "train", ignore_index=ignored)
    assert scenes.classes == [name for i, name in enumerate(NAMES) if i != ignored]
    assert scenes.palette.tolist() == [list(colour) for i, colour in enumerate(COLOURS) if i != ignored]


@given(st.data())
def test_values_and_classes_correspond(data):
    """Whatever is ignored and whatever order is followed, a value's name is the name of its class."""
    from freqformer.data.masks import MaskReader

    count, first = data.draw(st.integers(2, 255)), data.draw(st.integers(0, 1))
    ignore = data.draw(st.none() | st.integers(0, 300))
    values = [value for value in range(first, first + count) if value != ignore]
    order = np.array(data.draw(st.permutations(range(len(values)))))
    reader = MaskReader.of(values, order, first=first, ignore_index=ignore)
    pixels = np.array([[*values, *range(first)]], dtype=np.uint16)
    assert reader._classes(pixels).tolist() == [[*order.tolist(), *([IGNORED] * first)]]
    for wrong in (first + count, 299, 301, 65535):
        if wrong != ignore and wrong >= first + count:
            with pytest.raises(ValueError, match=f"value {wrong} at row 0, column 0 is none of the {len(values)} cl"):
                reader._classes(np.array([[wrong]], dtype=np.uint16))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (
            np.pad([[37]], ((2, 1), (1, 4))).astype(np.uint8),
            "the value 37 at row 2, column 1 is none of the 4 classes and not --ignore-index 255",
        ),
        (np.pad([[-1]], ((2, 1), (1, 4))).astype(np.int32), "the value -1 at row 2, column 1"),
        (np.pad([[1 << 30]], ((2, 1), (1, 4))).astype(np.int32), "the value 1073741824 at row 2"),
        (np.full((4, 6, 3), 7, np.uint8), "the colour (7, 7, 7) at row 0, column 0 is none of the class file's"),
        (np.zeros((6, 4), np.uint8), "has 4x6 pixels and the image 6x4"),
        (np.zeros((4, 6), np.float32), "floating-point"),
    ],
)
def test_bad_masks(root, mask, reason):
    lines = (f"{name},{r},{g},{b}" for name, (r, g, b) in zip(NAMES, COLOURS, strict=True))
    (root / "classes.txt").write_text("\n".join(lines))
    (root / "train/masks/b.png").unlink()
    path = put_mask(root / "train/masks/b.tif", mask)
    scenes = open_scenes(root, "train")
    np.testing.assert_array_equal(mask_of(scenes, 2), VALUES)
    with pytest.raises(UnreadableImage, match=re.escape(f"its mask {path}") + ".*" + re.escape(reason)) as caught:
        scenes.load(1)
    assert caught.value.name == scenes.name(1)
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


@pytest.mark.parametrize("damage", ["image", "mask"])
@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_damaged_files(root, damage, content):
    scenes = open_scenes(root, "train")
    path = Path(scenes.name(1)) if damage == "image" else root / "train/masks/b.png"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UnreadableImage, match="No such file" if content is None else "empty|not an image") as caught:
        scenes.load(1)
    assert caught.value.name == scenes.name(1)
    assert ("its mask" in caught.value.reason) == (damage == "mask")
    assert len(open_scenes(root, "train")) == (3 if content is not None else 2)


def test_a_mask_in_colour_among_grey_ones(root):
    put_mask(root / "val/masks/b.png", np.zeros((4, 6, 3), np.uint8))
    scenes = open_scenes(root, "val")
    np.testing.assert_array_equal(mask_of(scenes, 0), VALUES)
    with pytest.raises(UnreadableImage, match="it is in colour, and no class file"):
        scenes.load(1)


@pytest.mark.parametrize("image_tag", [None, 6])
@pytest.mark.parametrize("mask_tag", [None, 6])
def test_a_mask_is_turned_as_its_image_is(tmp_path, image_tag, mask_tag):
    def tagged(tag):
        exif = Image.Exif()
        exif[0x112] = tag or 1
        return {"exif": exif}

    values = np.arange(6, dtype=np.uint8).reshape(2, 3) % 4
    put_image(tmp_path / "train/images/a.jpg", values.shape, **tagged(image_tag))
    put_mask(tmp_path / "train/masks/a.png", values, **tagged(mask_tag))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    scenes = open_scenes(tmp_path, "train")
    if image_tag and not mask_tag:
        with pytest.raises(UnreadableImage, match="3x2 pixels and the image 2x3"):
            scenes.load(0)
        return
    image, mask = scenes.load(0)
    np.testing.assert_array_equal(mask, np.rot90(values, 3) if image_tag else values)
    assert (image.height, image.width) == tuple(mask.shape)


CLASS_FILES = {
    "classes.txt": "sky\nroad, paved\n",
    "class_dict.csv": '\ufeffname,r,g,b\r\nsky,1,2,3\r\n"road, paved",4,5,255\r\n',
    "a.csv": "name\nsky\nroad, paved\n",
    "b.txt": "sky 1 2 3\nroad, paved 4 5 255\n\n",
    "label_colors.txt": "1 2 3\tsky\n4 5 255\t\troad, paved\n",
    "c.json": json.dumps(["sky", "road, paved"]),
}


@pytest.mark.parametrize("name", CLASS_FILES)
def test_class_files(tmp_path, name):
    (tmp_path / name).write_text(CLASS_FILES[name], encoding="utf-8", newline="")
    found = read_class_file(tmp_path / name)
    assert found.names == ["sky", "road, paved"]
    if "255" in CLASS_FILES[name]:
        assert found.colours.tolist() == [[1, 2, 3], [4, 5, 255]]
    else:
        assert found.colours is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "names no class"),
        ("a.txt", "sky\n\nroad\n", "line 2 is empty"),
        ("a.txt", "sky\nroad\nsky\n", "the class 'sky' twice"),
        ("a.txt", "sky 1 2 3\nroad\n", "line 2 has no colour, as others have: 'road'"),
        ("a.csv", "sky,1,2,300\n", r"outside of 0\.\.255"),
        ("a.json", '{"sky": 1}', "not a JSON list of names"),
        ("a.json", "[1, 2]", "not a JSON list of names"),
        ("a.json", "[", "cannot read the class file"),
        ("a.txt", b"\xff\xfe\x00", "cannot read the class file"),
        ("none.txt", None, "No such file"),
    ],
)
def test_bad_class_files(root, name, content, message):
    if content is not None:
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FreqFormerError, match=message) as caught:
        open_scenes(root, "train", class_file=root / name)
    assert "\n" not in str(caught.value)


def test_without_a_class_file_the_masks_tell(root):
    (root / "classes.txt").unlink()
    put_mask(root / "train/masks/c.png", np.full((4, 6), 255, np.uint8))
    put_mask(root / "train/masks/b.png", VALUES + 4)
    scenes = open_scenes(root, "train")
    assert scenes.classes == list("01234567")
    assert (mask_of(scenes, 2) == IGNORED).all()
    with pytest.raises(FreqFormerError, match="hold 255 beside 7 lower values: give --ignore-index 255"):
        open_scenes(root, "train", ignore_index=0)
    assert open_scenes(root, "train", limit=1).classes == scenes.classes
    (root / "train/masks/c.png").unlink()
    assert open_scenes(root, "train", ignore_index=0).classes == list("1234567")
    # Val has fewer of them, and follows train.
    val = open_scenes(root, "val", classes=scenes.classes)
    assert val.classes == scenes.classes
    np.testing.assert_array_equal(mask_of(val), VALUES)
    shifted = open_scenes(root, "val", classes=list("1234567"), ignore_index=0)
    np.testing.assert_array_equal(mask_of(shifted), np.where(VALUES == 0, IGNORED, VALUES.astype(int) - 1))


def test_a_models_classes_are_followed(root):
    lines = (f"{name},{r},{g},{b}" for name, (r, g, b) in zip(NAMES, COLOURS, strict=True))
    (root / "classes.txt").write_text("\n".join(lines))
    scenes = open_scenes(root, "val", classes=["car", "sky", "road"], ignore_index=3)
    assert scenes.classes == ["car", "sky", "road"]
    assert scenes.palette.tolist() == [list(COLOURS[i]) for i in (2, 0, 1)]
    np.testing.assert_array_equal(mask_of(scenes), np.array([1, 2, 0, IGNORED])[VALUES])
    renamed = open_scenes(root, "val", classes=["a", "b", "c", "d"])
    assert renamed.classes == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(mask_of(renamed), VALUES)
    with pytest.raises(FreqFormerError, match=r"the masks have 4 classes and the model 3; .*--ignore-index"):
        open_scenes(root, "val", classes=["sky", "road", "car"])


@given(st.permutations("abcdef"))
def test_places_among(order):
    assert [order[place] for place in places_among("abcdef", order)] == list("abcdef")
    assert places_among("abcdef", "ghijkl").tolist() == list(range(6))
    assert [order[place] for place in places_among("bd", order, fewer=True)] == ["b", "d"]
    with pytest.raises(FreqFormerError, match="class-count mismatch"):
        places_among("bd", order)


def test_limit_is_a_fixed_part_of_a_shuffled_order(root):
    for name in "defgh":
        put_pair(root / "train/images", root / "train/masks", name)
    chosen = [open_scenes(root, "train", limit=n) for n in (2, 5, 8, 100)]
    names = [[scenes.name(i) for i in range(len(scenes))] for scenes in chosen]
    assert [len(each) for each in names] == [2, 5, 8, 8]
    assert names[0] == names[1][:2]
    assert names[2] == names[3] == sorted(names[2])
    assert names[1] != sorted(names[1])


def test_default_palette():
    colours = default_palette(255)
    assert colours.shape == (255, 3)
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == 255
    assert colours.any(axis=1).all()
    # The first of PASCAL VOC's.
    assert colours[:4].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]


def test_pickles_are_small(tmp_path):
    for i in range(300):
        put_pair(tmp_path / "train/images", tmp_path / "train/masks", f"{i:03d}")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    scenes = open_scenes(tmp_path, "train")
    content = pickle.dumps(scenes)
    assert len(content) < 300 * 2 * (len(scenes.name(0)) + 20) + 5000
    again = pickle.loads(content)
    assert again.name(7) == scenes.name(7)
    np.testing.assert_array_equal(mask_of(again, 7), VALUES)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (None, {"limit": 0}, "must be at least 1, not 0"),
        (None, {"ignore_index": -100}, r"--ignore-index must be in 0\.\.65535, not -100"),
        (
            None,
            {"split": "night"},
            "no split 'night' .*night/images with night/masks.*it holds classes.txt, train, val",
        ),
        (None, {"path": None}, "give --data-path, or --train-images and --train-masks"),
        (None, {"path": "nowhere"}, "nowhere does not exist; check --data-path"),
        (None, {"images": "train/images"}, "give both, --train-images and --train-masks"),
        (None, {"images": "train/images", "masks": "none"}, "none is not a folder; check --train-images"),
        (None, {"images": "train/images", "masks": "train/../train/images"}, "lie in one folder"),
        ("one class", {}, "2 to 255 classes beside the ignored one; .*classes.txt has 1"),
        ("many", {}, "2 to 255 classes.* has 299"),
        ("void", {}, "2 to 255 classes.* has 0"),
        ("large", {}, "values up to 4000, and at most 255 classes; give --class-file"),
        ("black and white", {}, "hold 0 and 255 alone, and 255 is the ignored value"),
        ("colour", {}, "are in colour, .* no class file gives .*: give --class-file with lines NAME,R,G,B"),
        ("same colour", {}, "two classes have the same one"),
    ],
)
def test_refusals(root, monkeypatch, change, given, message):
    monkeypatch.chdir(root)
    put_mask(root / "train/masks/a.png")
    values = {
        "void": np.full((4, 6), 255, np.uint8),
        "large": np.full((4, 6), 4000, np.uint16),
        "black and white": (VALUES % 2) * np.uint8(255),
        "colour": np.zeros((4, 6, 3), np.uint8),
        "same colour": np.zeros((4, 6, 3), np.uint8),
    }
    lines = {"one class": "cell", "many": "\n".join(map(str, range(300))), "same colour": "a,0,0,0\nb,0,0,0"}
    if change in values:
        for name in "abc":
            put_mask(root / f"train/masks/{name}.png", values[change])
    if change in ("void", "large"):
        (root / "classes.txt").unlink()
    if change in lines:
        (root / "classes.txt").write_text(lines[change])
    with pytest.raises(FreqFormerError, match=message) as caught:
        open_scenes(**{"path": root, "split": "train", **given})
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="the real data under shared/data are not here")
class TestCamVid:
    @pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
    def test_splits(self, split, count):
        scenes = open_scenes(SHARED / "camvid", split, ignore_index=11)
        assert len(scenes) == count
        assert scenes.problems == {}
        assert scenes.classes[0] == "Sky"
        assert scenes.classes[-1] == "Bicyclist"
        assert len(scenes.classes) == len(scenes.palette) == 11
        image, mask = scenes.load(count - 1)
        assert image.size == (480, 360)
        assert mask.shape == (360, 480)
        assert set(mask.unique().tolist()) <= {*range(11), IGNORED}

    def test_the_share_that_is_ignored(self):
        scenes = open_scenes(SHARED / "camvid", "val", ignore_index=11)
        share = np.mean([(mask_of(scenes, i) == IGNORED).mean() for i in range(len(scenes))])
        assert 0.017 <= share <= 0.040
        assert len(open_scenes(SHARED / "camvid", "val").classes) == 12
