"""What visitors send is bounded, and refused in plain words."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from freqformer.demo import read_upload, uploaded
from freqformer.demo.uploads import MAX_BYTES, WORKING_SIDE
from freqformer.errors import FreqFormerError

TEXT = b"this is no image\n" * 20
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'


def encoded(image, kind="JPEG", **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def refusal(path):
    with pytest.raises(FreqFormerError) as error:
        read_upload(str(path))
    words = str(error.value)
    assert str(path) not in words
    assert "\n" not in words
    return words


@pytest.mark.parametrize(
    ("name", "content"), [("a.png", TEXT), ("a.svg", SVG), ("a.jpg", b""), ("a.gif", b"GIF89a"), ("a.png", b"%!PS\n")]
)
def test_what_is_no_image_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith("this file cannot be used as an image: ")


def test_a_truncated_photo_is_refused(tmp_path, photo):
    (tmp_path / "cut.jpg").write_bytes(encoded(photo)[:-400])
    assert "truncated" in refusal(tmp_path / "cut.jpg")


@pytest.mark.parametrize("size", [(7000, 7000), (12001, 700), (700, 12001), (2**31 - 1, 2**31 - 1)])
def test_a_size_is_refused_before_pixels_are_decoded(tmp_path, hollow_png, size):
    """Had a pixel been wanted, the complaint would be that there is none."""
    (tmp_path / "large.png").write_bytes(hollow_png(*size))
    assert "pixels" in refusal(tmp_path / "large.png")


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (21, 1)])
def test_a_line_is_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "line.png")
    assert f"{size[0]}×{size[1]}" in refusal(tmp_path / "line.png")


def test_a_large_file_is_refused(tmp_path):
    with open(tmp_path / "large.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "20 MB" in refusal(tmp_path / "large.jpg")


def test_a_file_that_is_gone_is_to_be_sent_again(tmp_path):
    assert "send it again" in refusal(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("I;16", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "TIFF")]
)
def test_every_mode_becomes_rgb(tmp_path, mode, kind):
    (tmp_path / "image").write_bytes(encoded(Image.new(mode, (9, 7)), kind))
    image = read_upload(str(tmp_path / "image"))
    assert (image.mode, image.size) == ("RGB", (9, 7))


def test_an_animation_shows_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_upload(str(tmp_path / "moving.gif")).getpixel((0, 0)) == (255, 0, 0)


def test_a_photo_taken_sideways_stands_upright(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "sideways.png", exif=exif)
    assert read_upload(str(tmp_path / "sideways.png")).size == photo.size[::-1]


def test_a_large_image_is_shrunk_and_a_small_one_is_not(tmp_path):
    Image.new("RGB", (4096, 1024)).save(tmp_path / "large.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "small.png")
    assert read_upload(str(tmp_path / "large.png")).size == (WORKING_SIDE, 512)
    assert read_upload(str(tmp_path / "small.png")).size == (1, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_damaged_photo_is_read_or_refused(tmp_path_factory, place, value):
    pixels = np.random.default_rng(1).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    content = bytearray(encoded(Image.fromarray(pixels)))
    content[place % len(content)] = value
    path = tmp_path_factory.mktemp("damaged") / "a.jpg"
    path.write_bytes(content)
    try:
        words = read_upload(str(path)).mode
    except FreqFormerError as error:
        words = str(error)
    assert words == "RGB" or words.startswith("this file cannot be used as an image: ")


def test_uploads_are_the_only_files_that_are_opened(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "mine.png").touch()
    (tmp_path / "secret.png").touch()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    assert uploaded({"path": str(folder / "mine.png")}, folder) == str(folder / "mine.png")
    outside = [tmp_path / "secret.png", folder / "../secret.png", folder / "link.png", "http://example.invalid/a.png"]
    paths = [*map(str, outside), "secret.png", "", "\0", "a" * 5000, None, 3]
    for sent in [*({"path": path} for path in paths), {}, None, "mine.png", [str(folder / "mine.png")]]:
        with pytest.raises(FreqFormerError, match="sent to this page"):
            uploaded(sent, folder)
