import io

import numpy as np
import pytest
from PIL import Image

from freqformer.data import decode
from freqformer.errors import FreqFormerError

GRADIENT = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)


def encode(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(content):
    image = decode(content, "it")
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values=GRADIENT):
    return np.repeat(values[..., None], 3, -1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(grey())
    if mode == "I;16":
        image = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    else:
        image = (image.convert("L") if mode in ("1", "LA", "P", "PA") else image).convert(mode)
    found = pixels(encode(image, "TIFF" if mode in ("CMYK", "PA") else "PNG"))
    if mode == "1":
        assert set(found.ravel()) == {0, 255}
    else:
        np.testing.assert_array_equal(found, grey())


def test_alpha_is_dropped():
    rgba = np.dstack([grey(), np.zeros_like(GRADIENT)])
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(rgba), "PNG")), grey())


def test_palette_with_transparency_makes_no_warning():
    palette = Image.fromarray(grey()).quantize(4)
    assert pixels(encode(palette, "PNG", transparency=bytes([0, 128, 255, 255]))).shape == (6, 8, 3)


def test_sixteen_bit_grey_is_scaled():
    values = np.array([[0, 128, 129, 32896, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(values), "PNG"))[0, :, 0], [0, 0, 1, 128, 255])
    pgm = b"P5 2 1 65535\n" + bytes([0x80, 0x80, 0xFF, 0xFF])
    np.testing.assert_array_equal(pixels(pgm)[0, :, 0], [128, 255])


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(content)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_is_applied(format, orientation):
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :8] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    found = pixels(encode(Image.fromarray(picture), format, exif=exif))
    # The turns by which a viewer sets each orientation upright, anticlockwise.
    expected = np.rot90(picture, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 12


def test_first_picture_of_a_phones_mpo():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    assert pixels(encode(frames[0], "MPO", save_all=True, append_images=frames[1:])).min() > 250


def test_reads_paths(tmp_path):
    path = tmp_path / "ä b.bmp"
    Image.fromarray(grey()).save(path)
    np.testing.assert_array_equal(np.asarray(decode(path, "it")), grey())
    np.testing.assert_array_equal(np.asarray(decode(str(path), "it")), grey())


JPEG = encode(Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8)), "JPEG")
PNG = encode(Image.fromarray(grey()), "PNG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello world, no image", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:30], ""),
        (PNG[:40], ""),
        (PNG[:50] + b"\0\0\0\0" + PNG[54:], ""),
        (encode(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"), "no known range"),
        (encode(Image.fromarray(GRADIENT.astype(np.int32) * 9999), "TIFF"), "no known range"),
    ],
)
def test_unreadable_images(content, reason):
    with pytest.raises(FreqFormerError, match=rf"^cannot read image THE NAME: .*{reason}") as caught:
        decode(content, "THE NAME")
    assert "\n" not in str(caught.value)


def test_decompression_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    assert pixels(PNG).shape == (6, 8, 3)  # 48 pixels: Pillow only warns.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(
        FreqFormerError, match=r"cannot read image it: Image size \(48 pixels\) exceeds limit of 40 pixels$"
    ):
        decode(PNG, "it")


def test_missing_file(tmp_path):
    with pytest.raises(FreqFormerError, match="cannot read image it: No such file"):
        decode(tmp_path / "none.png", "it")
