"""Images are read as they are meant to be seen and fitted into squares."""

import os
import signal
import struct
import sys
import zlib

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import EpsImagePlugin, Image

from clipself_seg.config import load_config
from clipself_seg.data import images
from clipself_seg.data.images import (
    MAX_PIXELS,
    decode_image,
    fit_size,
    image_size,
    letterbox_crops,
    letterbox_image,
    open_image,
    pil_pixels,
    pixel_corners,
    read_image,
)
from clipself_seg.data.masks import read_indices, read_panoptic_png
from clipself_seg.errors import InputError


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_a_size_that_an_annotation_has_before_exif_rotation_is_refused_the_right_way_round(
    tmp_path,
):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(noise(150, 200)).save(tmp_path / "a.jpg", exif=exif)
    says = r"a.jpg is 150 x 200, as it is shown \(after EXIF rotation\); by its annotation it is 200 x 150: "
    with pytest.raises(InputError, match=f"{says}.*remove its EXIF tag"):
        read_image(tmp_path / "a.jpg", (200, 150))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_detectron2_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(noise(5, 8)).save(path, exif=exif)
    image = read_image(path)
    assert image.shape == ((5, 8, 3) if orientation <= 4 else (8, 5, 3))
    Image.fromarray(noise(5, 8)).save(path.with_suffix(".tif"), exif=exif)
    np.testing.assert_array_equal(read_image(path.with_suffix(".tif")), image)
    for file in (path, path.with_suffix(".tif")):
        assert image_size(file) == image.shape[1::-1]
    np.testing.assert_array_equal(image, detectron2_read_image(str(path), "RGB"))
    grey = tmp_path / "grey.tif"  # which Pillow would map into memory
    Image.fromarray(noise(5, 8)[..., 0]).save(grey, exif=exif)
    np.testing.assert_array_equal(read_image(grey), np.repeat(image[..., :1], 3, axis=2))


def test_grey_becomes_three_equal_channels_of_the_high_byte(tmp_path):
    Image.fromarray(noise(6, 7, 1)).save(tmp_path / "grey.png")
    expected = np.repeat(noise(6, 7, 1)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), expected)
    values = np.array([[0, 255, 256, 65535], [257, 512, 32768, 1000]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert image[..., 0].tolist() == [[0, 0, 1, 255], [1, 2, 128, 3]]


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB", "YCbCr"])
def test_jpegs_of_any_colour_space_are_read_in_natural_colours(tmp_path, mode):
    colour = Image.new("RGB", (40, 30), (200, 60, 60)).convert(mode)
    colour.save(tmp_path / "colour.jpg", quality=95)
    expected = np.array(colour.convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "colour.jpg").astype(int) - expected).max() <= 4


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16", "RGB"])
def test_bytes_and_pil_images_give_the_pixels_of_the_file(tmp_path, mode):
    path = tmp_path / "image.png"
    deep = Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 999)
    image = deep if mode == "I;16" else Image.fromarray(noise(6, 8)).convert(mode)
    exif = Image.Exif()
    exif[274] = 6
    image.save(path, exif=exif)
    expected = read_image(path)
    assert expected.shape == (8, 6, 3)
    np.testing.assert_array_equal(decode_image(path.read_bytes(), "bytes"), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(pil_pixels(opened), expected)
        with pytest.raises(InputError, match="image.png is 8 x 6, .* 47 pixels"):
            pil_pixels(opened, max_pixels=47)
    np.testing.assert_array_equal(pil_pixels(image.transpose(Image.Transpose.ROTATE_270)), expected)
    np.testing.assert_array_equal(pil_pixels(opened), expected)  # closed, but read before
    with Image.open(path) as closed:
        pass
    with pytest.raises(InputError, match="image.png was closed before its pixels were read"):
        pil_pixels(closed)
    path.write_bytes(path.read_bytes()[:-30])
    with Image.open(path) as opened, pytest.raises(InputError, match="image.png cannot be decoded"):
        pil_pixels(opened)


def saved(form, change):
    """What writes an image, whose bytes are changed."""

    def write(path):
        Image.fromarray(noise(64, 64)).save(path, format=form)
        path.write_bytes(change(path.read_bytes()))

    return write


BAD_FILES = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: path.mkdir(),
    "truncated": saved("JPEG", lambda content: content[:900]),
    "broken_chunk": saved("PNG", lambda c: c[:20] + bytes([c[20] ^ 255]) + c[21:]),
    "floats": lambda path: Image.fromarray(np.zeros((4, 4), np.float32)).save(path, "TIFF"),
}


@pytest.mark.parametrize("make", BAD_FILES.values(), ids=BAD_FILES)
def test_a_picture_that_cannot_be_used_is_named(tmp_path, make):
    path = tmp_path / "000000000042.jpg"
    make(path)
    with pytest.raises(InputError, match="000000000042.jpg") as caught:
        read_image(path)
    assert len(str(caught.value).splitlines()) <= 2
    # The image may be a user's own, which no annotation file names.
    assert "annotation" not in str(caught.value)


def test_no_picture_starts_a_program(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **how: started.append(given))
    path = tmp_path / "photo.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match="photo.jpg is not an image of JPEG, PNG, .*: replace it"):
        read_image(path)
    assert not started


@pytest.fixture
def at_most_seconds():
    """Ends a test that waits without end; pytest has no such limit of its own."""

    def stop(signum, frame):
        raise AssertionError("still waiting")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_pipe_is_not_waited_for(tmp_path, at_most_seconds):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="a.jpg is a pipe or a device"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="a.jpg is a pipe or a device"):
        read_panoptic_png(tmp_path / "a.jpg")


def write_header(path, width, height, colour=2):
    """A PNG that states its size and holds next to nothing."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    size = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    with open(path, "ab") as file:
        for name, content in ((b"IHDR", size), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + name + content)
            file.write(struct.pack(">I", zlib.crc32(name + content)))
    return path


def test_a_size_beyond_the_limit_is_refused_by_the_header(tmp_path):
    assert load_config(None).INPUT.MAX_PIXELS == MAX_PIXELS
    with open_image(write_header(tmp_path / "camera.png", 11_648, 8_736)) as file:
        assert file.size == (11_648, 8_736)
    with pytest.raises(InputError, match="small.png cannot be decoded"):  # so it is tried
        read_image(write_header(tmp_path / "small.png", 40, 30), max_pixels=1200)
    for side in (13_000, 20_000):  # the second is beyond Pillow's own limit
        path = write_header(tmp_path / f"{side}.png", side, side)
        said = f"{side}.png is {side} x {side}, .* {MAX_PIXELS} pixels of INPUT.MAX_PIXELS: .*raise"
        for read in (read_image, read_panoptic_png):
            with pytest.raises(InputError, match=said):
                read(path)
        path = write_header(tmp_path / f"{side}.png", side, side, colour=0)
        with pytest.raises(InputError, match=said):
            read_indices(path)


@pytest.mark.parametrize("ending", ["gif", "tiff", "webp"])
def test_the_first_of_several_frames_is_read(tmp_path, ending):
    frames = [Image.new("RGB", (9, 8), (value, 0, 0)) for value in (200, 100, 0)]
    path = tmp_path / f"frames.{ending}"
    lossless = {"lossless": True} if ending == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    assert (read_image(path) == (200, 0, 0)).all()


def test_fit_size_rounds_halves_to_even_and_keeps_a_pixel():
    assert fit_size(640, 427, 1024) == (1024, 683)
    assert fit_size(4, 10, 5) == (2, 5)
    assert fit_size(5, 2, 5) == (5, 2)
    assert fit_size(20, 5, 10) == (10, 2)  # 2.5 -> 2
    assert fit_size(5000, 1, 1024) == (1024, 1)


def test_letterboxed_image_is_pils_bicubic_above_black():
    image = noise(30, 50)
    square = letterbox_image(image, 64)
    resized = Image.fromarray(image).resize((64, 38), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(square[:38], np.asarray(resized))
    assert square.shape == (64, 64, 3) and not square[38:].any()


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_one_pixel_high_or_wide_pictures_survive(shape):
    assert letterbox_image(noise(*shape) | 1, 32).any()
    assert letterbox_crops(noise(*shape), np.zeros((0, 4)), 8).shape == (0, 8, 8, 3)
    crops = letterbox_crops(noise(*shape) | 1, np.array([[0, 0, shape[1] / 4, shape[0] / 4]]), 8)
    assert crops.any() and crops.shape == (1, 8, 8, 3)


def test_crops_equal_pil_box_by_box():
    image, rng = noise(31, 47), np.random.default_rng(1)
    low = rng.uniform(0, 20, (10, 2))
    boxes = np.concatenate([low, low + rng.uniform(2, 10, (10, 2))], axis=1)
    for box, crop in zip(boxes, letterbox_crops(image, boxes, 16)):
        cut = Image.fromarray(image).crop(tuple(box))
        scale = 16 / max(cut.size)
        cut = cut.resize((round(cut.width * scale), round(cut.height * scale)), 3)
        expected = Image.new("RGB", (16, 16))
        expected.paste(cut, ((16 - cut.width) // 2, (16 - cut.height) // 2))
        np.testing.assert_array_equal(crop, np.asarray(expected))


def test_corners_round_to_even_and_never_lose_the_last_pixel():
    boxes = [
        [0.5, 1.5, 2.5, 3.5],  # halves to even
        [3.1, 0, 3.2, 6],  # thinner than a pixel
        [9.8, 5.9, 10, 6],  # at the far corner
        [-5, -5, 50, 50],  # larger than the image
        [20, 2, 30, 4],  # outside
    ]
    assert pixel_corners(np.array(boxes), 10, 6).tolist() == [
        [0, 2, 2, 4],
        [3, 0, 4, 6],
        [9, 5, 10, 6],
        [0, 0, 10, 6],
        [9, 2, 10, 4],
    ]


def test_a_png_whose_chunk_is_longer_than_the_file_is_refused_before_room_is_made_for_it(tmp_path):
    image, grey = tmp_path / "image.png", tmp_path / "grey.png"
    Image.fromarray(noise(9, 8)).save(image)
    Image.fromarray(noise(9, 8, 1)).save(grey)
    for path in (image, grey):
        content = path.read_bytes()
        place = content.index(b"IDAT") - 4
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    cases = ((read_image, image), (read_panoptic_png, image), (read_indices, grey))
    for read, path in cases:
        with pytest.raises(InputError, match=rf"{path.name} cannot be decoded .*a chunk of 427819"):
            read(path)


def test_what_follows_the_end_of_a_png_does_not_count(tmp_path):
    path, pixels = tmp_path / "cropped.png", noise(9, 8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes() + 60 * b"\xff")  # of the image before it was cropped
    assert (read_image(path) == pixels).all()
    assert (read_panoptic_png(path) == pixels @ [1, 256, 65536]).all()


def test_errors_of_the_decoder_of_avif_are_named(tmp_path, monkeypatch):
    def decoder(*_, **__):
        raise RuntimeError("Failed to decode image: Not implemented")

    (tmp_path / "a.avif").write_bytes(b"0000ftypavif")
    monkeypatch.setattr(Image, "open", decoder)
    with pytest.raises(InputError, match="a.avif cannot be decoded .Failed to decode"):
        read_image(tmp_path / "a.avif")


def test_heic_without_its_package_is_refused_by_the_name_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    images._register_decoders.cache_clear()
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf")
    with pytest.raises(InputError, match="a.heic is not an image of .*HEIC needs .* pillow-heif"):
        read_image(tmp_path / "a.heic")


def test_heic_is_read_as_jpeg_is_within_the_limits(tmp_path):
    pytest.importorskip("pillow_heif", reason="needs pillow-heif (the extra [heic])")
    images._register_decoders.cache_clear()
    images._register_decoders()
    sides = Image.new("RGB", (120, 80), (255, 0, 0))
    sides.paste((0, 0, 255), (0, 0, 40, 80))
    exif = Image.Exif()
    exif[274] = 6  # to be turned
    for name in ("a.heic", "a.jpg"):
        sides.save(tmp_path / name, exif=exif.tobytes(), quality=95)
    heic, jpeg = (read_image(tmp_path / name) for name in ("a.heic", "a.jpg"))
    assert heic.shape == (120, 80, 3) and np.abs(heic[:30].astype(int) - jpeg[:30]).max() < 20
    assert heic[2, 2].argmax() == 2 and heic[-3, 2].argmax() == 0
    with pytest.raises(InputError, match="80 x 120, which is more than the 9599 pixels"):
        read_image(tmp_path / "a.heic", max_pixels=9599)
    content = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "a.heic").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="a.heic"):
        read_image(tmp_path / "a.heic")
