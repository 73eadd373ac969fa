"""A miniature of each data set in its true layout, opened and loaded in batches."""

import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader

from freqformer.data import EpochBatchSampler, Samples, collate, open_images, train_transform
from freqformer.errors import FreqFormerError

SPLITS = ("train", "val")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FREQFORMER_CACHE", str(tmp_path / "cache"))


def put(path, red):
    """An image that is known again by its red."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (red, 50, 90)).save(path, "PNG" if path.suffix == ".png" else "JPEG", quality=100)


def records(rows, **dtypes):
    """A MATLAB array of structures."""
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        for name, value in row.items():
            array[name][0, place] = value
    return array


def names(labels):
    return np.array(list(labels), dtype=object)[None]


def cars(root, train, val):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit/cars_meta.mat", {"class_names": names(f"Car {i} Coupé" for i in range(3))})
    for split, labels, file in (
        ("train", train, base / "devkit/cars_train_annos.mat"),
        ("test", val, base / "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for i, label in enumerate(labels):
            put(base / f"cars_{split}/{i + 1:05d}.jpg", 40 * label)
            corners = {f"bbox_{side}": 7 for side in ("x1", "y1", "x2", "y2")}
            rows.append({**corners, "class": np.uint8(label + 1), "fname": f"{i + 1:05d}.jpg"})
        savemat(file, {"annotations": records(rows)})


def cars_in_one(root, train, val):
    base = root / "stanford_cars"
    rows = []
    for i, (label, test) in enumerate([*((t, 0) for t in train), *((v, 1) for v in val)], 1):
        put(base / f"car_ims/{i:06d}.jpg", 40 * label)
        rows.append({"relative_im_path": f"car_ims/{i:06d}.jpg", "class": np.uint8(label + 1), "test": np.uint8(test)})
    content = {"annotations": records(rows), "class_names": names(f"Car {i} Coupé" for i in range(3))}
    savemat(base / "cars_annos.mat", content)


def flowers(root, train, val):
    base = root / "flowers-102"
    labels = [*train, *val]
    for i, label in enumerate(labels, 1):
        put(base / f"jpg/image_{i:05d}.jpg", 40 * label)
    half = len(train) // 2
    number = np.arange(1, len(labels) + 1, dtype=np.uint16)
    parts = {"trnid": number[:half], "valid": number[half : len(train)], "tstid": number[len(train) :]}
    savemat(base / "setid.mat", {name: part[None] for name, part in parts.items()})
    savemat(base / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8) + 1})


def flowers_in_folders(root, train, val):
    for split, labels in (("train", train), ("test", val)):
        for i, label in enumerate(labels):
            put(root / f"flowers/{split}/{label:03d}/image_{i:05d}.jpg", 40 * label)


def pets(root, train, val):
    base = root / "oxford-iiit-pet"
    breeds = ["Abyssinian", "american_pit_bull_terrier", "yorkshire_terrier"]
    (base / "annotations").mkdir(parents=True)
    for split, labels in (("trainval", train), ("test", val)):
        lines = []
        for i, label in enumerate(labels):
            put(base / f"images/{breeds[label]}_{split}{i}.jpg", 40 * label)
            lines.append(f"{breeds[label]}_{split}{i} {label + 1} 1 1\n")
        (base / f"annotations/{split}.txt").write_text("".join(lines))


def inaturalist(year, place, categories=True):
    """The competition's JSON files, with the images where ``place`` has them."""

    def write(root, train, val):
        root.mkdir(parents=True, exist_ok=True)
        species = [{"id": 11 * label, "name": f"Genus sp{label}", "supercategory": "Aves"} for label in range(3)]
        identity = 0
        for split, labels in (("train", train), ("val", val)):
            images, annotations = [], []
            for label in labels:
                identity += 1
                file = f"train_val{year}/Aves/{11 * label}/{identity:032x}.jpg"
                put(root / place(file), 40 * label)
                images.append({"id": identity, "file_name": file, "width": 40, "height": 36})
                annotations.append({"id": identity, "image_id": identity, "category_id": 11 * label})
            content = {"images": images, "annotations": annotations, "categories": [] if categories else species}
            (root / f"{split}{year}.json").write_text(json.dumps(content))
        if categories:
            (root / "categories.json").write_text(json.dumps(species))

    return write


def fgvc(below):
    def write(root, train, val):
        root.mkdir(parents=True, exist_ok=True)
        for split, labels in (("train", train), ("val", val), ("test", val)):
            content = {}
            for i, label in enumerate(labels):
                content[f"{label:03d}.bird/{split} {i}.jpg"] = 9 + label
                put(root / below / f"{label:03d}.bird/{split} {i}.jpg", 40 * label)
            (root / f"{split}.json").write_text(json.dumps(content))

    return write


def shards(suffix, nested):
    def write(root, train, val):
        for split, labels in (("train", train), ("val", val)):
            for number, part in enumerate((labels[:2], labels[2:])):
                folder = root / split if nested else root
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{number:06d}{suffix}" if nested else f"birds-{split}-{number:06d}{suffix}"
                with tarfile.open(folder / name, "w:gz" if suffix.endswith("z") else "w") as tar:
                    for i, label in enumerate(part):
                        kind = ("jpg", "jpeg", "png", "PNG")[i % 4]
                        put(root.parent / f"made/x.{kind.lower()}", 40 * label)
                        tar.add(root.parent / f"made/x.{kind.lower()}", f"./a b/{number}{i}.{kind}")
                        (root.parent / "made/x.cls").write_text(f"{label}\n")
                        tar.add(root.parent / "made/x.cls", f"./a b/{number}{i}.cls")

    return write


FLOWERS = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]
BREEDS = ["Abyssinian", "American Pit Bull Terrier", "Yorkshire Terrier"]
CARS = [f"Car {i} Coupé" for i in range(3)]
SPECIES = [f"Genus sp{i}" for i in range(3)]
LAYOUTS = {
    "CARS": ("CARS", cars, "", CARS),
    "CARS, own folder": ("CARS", cars, "stanford_cars", CARS),
    "CARS, one archive": ("CARS", cars_in_one, "stanford_cars", CARS),
    "FLOWERS": ("FLOWERS", flowers, "", FLOWERS),
    "FLOWERS, own folder": ("FLOWERS", flowers, "flowers-102", FLOWERS),
    "FLOWERS, folders": ("FLOWERS", flowers_in_folders, "flowers", ["000", "001", "002"]),
    "PETS": ("PETS", pets, "", BREEDS),
    "PETS, own folder": ("PETS", pets, "oxford-iiit-pet", BREEDS),
    "INAT": ("INAT", inaturalist(2018, lambda file: file), "", SPECIES),
    "INAT, own names": ("INAT", inaturalist(2018, lambda file: file, categories=False), "", SPECIES),
    "INAT, torchvision": ("INAT", inaturalist(2018, lambda file: "2018" + file[13:]), "", SPECIES),
    "INAT, torchvision's folder": ("INAT", inaturalist(2018, lambda file: "2018" + file[13:]), "2018", SPECIES),
    "INAT, GFNet": ("INAT", inaturalist(2018, lambda file: file.replace("/Aves", "")), "", SPECIES),
    "INAT19": ("INAT19", inaturalist(2019, lambda file: "2019" + file[13:]), "", SPECIES),
    "FGVC": ("FGVC", fgvc("images"), "", ["9", "10", "11"]),
    "FGVC, Dogs": ("FGVC", fgvc("Images"), "", ["9", "10", "11"]),
    "FGVC, Cars": ("FGVC", fgvc(""), "", ["9", "10", "11"]),
    "WDS": ("WDS", shards(".tar", nested=False), "", ["0", "1", "2"]),
    "WDS, packed": ("WDS", shards(".tar.gz", nested=False), "", ["0", "1", "2"]),
    "WDS, folders": ("WDS", shards(".tgz", nested=True), "", ["0", "1", "2"]),
}
TRAIN, VAL = [2, 0, 1, 1, 0, 2, 2, 0], [1, 0, 1, 2]


@pytest.mark.parametrize(("name", "write", "below", "classes"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout(tmp_path, name, write, below, classes):
    write(tmp_path / "data", TRAIN, VAL)
    for split, labels in zip(SPLITS, (TRAIN, VAL), strict=True):
        images = pickle.loads(pickle.dumps(open_images(name, tmp_path / "data" / below, split)))
        assert images.classes[:3] == classes
        assert len(images.classes) == (102 if "pink primrose" in classes else 3)
        assert sorted(images.targets) == sorted(labels)
        if classes != ["000", "001", "002"]:  # Folders are sorted by class.
            assert images.targets.tolist() == labels
        for i in range(len(images)):
            assert images.load(i).getpixel((9, 9))[0] == pytest.approx(40 * images.targets[i], abs=3)
            assert images.name(i)
    again = open_images(name, tmp_path / "data" / below, "val", classes=images.classes)
    assert again.targets.tolist() == images.targets.tolist()


@pytest.mark.parametrize("kind", ["CARS", "FLOWERS", "PETS", "INAT", "FGVC", "WDS"])
def test_layout_in_batches(tmp_path, kind):
    name, write, below, _ = LAYOUTS[kind]
    write(tmp_path / "data", TRAIN, VAL)
    images = open_images(name, tmp_path / "data" / below, "train")
    samples = Samples(images, train_transform((24, 24), mean=(0.5,) * 3, std=(0.5,) * 3))
    sampler = EpochBatchSampler(len(samples), 4, 0, lambda: (0, 0))
    batches = list(DataLoader(samples, batch_sampler=sampler, collate_fn=collate, num_workers=2))
    assert [batch["image"].shape for batch in batches] == [(4, 3, 24, 24)] * 2
    assert sorted(int(i) for batch in batches for i in batch["index"]) == list(range(8))


@pytest.mark.parametrize("name", ["CARS", "FLOWERS", "PETS", "INAT", "INAT19", "FGVC", "WDS"])
def test_a_folder_of_something_else(tmp_path, name):
    (tmp_path / "train").mkdir()
    for split in SPLITS:
        with pytest.raises(FreqFormerError, match="--data-path") as caught:
            open_images(name, tmp_path, split)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("CARS", "stanford_cars/devkit/cars_meta.mat"),
        ("CARS", "stanford_cars/devkit/cars_train_annos.mat"),
        ("CARS, one archive", "stanford_cars/cars_annos.mat"),
        ("FLOWERS", "flowers-102/setid.mat"),
        ("FLOWERS", "flowers-102/imagelabels.mat"),
        ("PETS", "oxford-iiit-pet/annotations/trainval.txt"),
        ("INAT", "train2018.json"),
        ("INAT", "categories.json"),
        ("FGVC", "train.json"),
    ],
)
@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_damaged_annotations(tmp_path, kind, file, damage):
    name, write, *_ = LAYOUTS[kind]
    write(tmp_path, TRAIN, VAL)
    path = tmp_path / file
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2 - 3], "other": b'{"a": "b"}'}[damage])
    below = tmp_path / ("stanford_cars" if "archive" in kind else "")
    with pytest.raises(FreqFormerError, match=path.name.split(".")[0] + "|JSON files of another form") as caught:
        open_images(name, below, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["CARS", "FLOWERS", "PETS", "INAT", "FGVC"])
def test_annotations_without_images(tmp_path, kind):
    name, write, *_ = LAYOUTS[kind]
    write(tmp_path, TRAIN, VAL)
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(FreqFormerError, match=r"none of the listed images is there, the first is .*jpg"):
        open_images(name, tmp_path, "train")


def test_fgvc_without_val_takes_test_and_needs_known_classes(tmp_path):
    fgvc("images")(tmp_path, TRAIN, VAL)
    (tmp_path / "val.json").unlink()
    images = open_images("FGVC", tmp_path, "val")
    assert images.targets.tolist() == VAL
    assert "test 0" in images.name(0)
    (tmp_path / "test.json").write_text(json.dumps({"001.bird/test 0.jpg": 77}))
    with pytest.raises(FreqFormerError, match="has the class 77"):
        open_images("FGVC", tmp_path, "val")


def test_species_of_one_name_are_called_by_their_numbers(tmp_path):
    inaturalist(2018, lambda file: file)(tmp_path, TRAIN, VAL)
    twins = [{"id": 11 * label, "name": "hidden"} for label in range(3)]
    (tmp_path / "categories.json").write_text(json.dumps(twins))
    assert open_images("INAT", tmp_path, "val").classes == ["0", "11", "22"]


def test_wds_takes_names_and_fewer_classes(tmp_path):
    shards(".tar", nested=False)(tmp_path / "data", TRAIN, [0, 1, 1])
    assert open_images("WDS", tmp_path / "data", "val").classes == ["0", "1", "2"]  # As the training shards count.
    for path in (tmp_path / "data").glob("*train*"):
        path.unlink()
    alone = open_images("WDS", tmp_path / "data", "val", classes=["0", "1", "2"])
    assert (alone.classes, alone.targets.tolist()) == (["0", "1", "2"], [0, 1, 1])
    (tmp_path / "data/classes.txt").write_text("ant\nbee\n\n")
    assert open_images("WDS", tmp_path / "data", "val").classes == ["ant", "bee"]
    (tmp_path / "data/classes.txt").write_text("ant\n")
    with pytest.raises(FreqFormerError, match="labels from 0 to 1"):
        open_images("WDS", tmp_path / "data", "val")


def test_wds_tells_splits_by_whole_words(tmp_path):
    shards(".tar", nested=False)(tmp_path / "data", TRAIN, VAL)
    for path in (tmp_path / "data").glob("*train*"):
        path.rename(path.with_name(path.name.replace("train", "training")))
    for path in sorted((tmp_path / "data").glob("*val*")):
        path.rename(path.with_name(path.name.replace("val", "constrained-validation")))
    assert [len(open_images("WDS", tmp_path / "data", split)) for split in SPLITS] == [8, 4]


def test_a_test_folder_is_a_split_of_its_own(tmp_path):
    for split, count in (("train", 2), ("val", 1), ("test", 3)):
        for label in ("ant", "bee"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (4, 4)).save(folder / f"{number}.png")
    assert len(open_images("FOLDER", tmp_path, "test")) == 6
    assert len(open_images("FOLDER", tmp_path, "val")) == 2
