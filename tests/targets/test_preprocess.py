"""Preprocessing: the same pixels as timm's evaluation transform, bit for bit, from whatever people call an image."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from targets.bundle import pixels
from targets.bundle.pixels import UnreadableImageError, decode, read_image
from targets.preprocess import Preprocess, normalise, resize_and_crop


def noise(width: int, height: int, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Random smooth colours: noise alone would hide an error of the resampling."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(1, height // 3), max(1, width // 3), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def timm_uint8(image: Image.Image, preprocess: Preprocess, *, normalised: bool = False) -> np.ndarray:
    from timm.data.transforms_factory import create_transform

    transform = create_transform(
        input_size=(3, preprocess.height, preprocess.width),
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_share,
        crop_mode=preprocess.crop_mode,
        normalize=normalised,
    )
    return np.asarray(transform(image))


sides = st.integers(1, 400)


@settings(max_examples=150)
@given(
    width=sides,
    height=sides,
    input_size=st.sampled_from([(32, 32), (48, 48), (48, 33), (17, 64)]),
    crop_share=st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.5]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_pixels_are_those_of_timm(width, height, input_size, crop_share, crop_mode, interpolation):
    preprocess = Preprocess(
        height=input_size[0],
        width=input_size[1],
        crop_share=crop_share,
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    image = noise(width, height)
    ours = resize_and_crop(image, preprocess)
    if crop_mode == "border" and min(width, height) * 2 * min(input_size) <= max(width, height):
        return  # timm refuses such a needle: its short side is rounded to 0, ours to 1
    expected = timm_uint8(image, preprocess)

    assert ours.dtype == np.uint8
    assert np.array_equal(ours.transpose(2, 0, 1), expected)


def test_normalised_numbers_are_those_of_timm():
    preprocess = Preprocess(height=40, width=40, crop_share=0.9, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    image = noise(61, 83)

    ours = normalise(resize_and_crop(image, preprocess)[None], preprocess)

    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    assert np.array_equal(ours[0], timm_uint8(image, preprocess, normalised=True))


def test_every_value_is_normalised_as_by_torch():
    import torch
    from torchvision.transforms.functional import normalize

    preprocess = Preprocess(height=16, width=16, mean=(0.1, 0.456, 0.406), std=(0.3, 0.224, 0.225))
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)

    tensor = torch.from_numpy(values[0]).permute(2, 0, 1).float().div(255)
    expected = normalize(tensor, torch.tensor(preprocess.mean), torch.tensor(preprocess.std)).numpy()

    assert np.array_equal(normalise(values, preprocess)[0], expected)


@pytest.mark.real
def test_pixels_of_real_images_are_those_of_timm(assets):
    import timm
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=False)
    config = resolve_data_config({}, model=model)
    transform = create_transform(**config)
    preprocess = Preprocess(
        height=config["input_size"][1],
        width=config["input_size"][2],
        crop_share=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )
    for name in ("imagenet_val/images.zip", "imagenet_train1000/images.zip", "caltech101/shard_03.zip"):
        with zipfile.ZipFile(assets / name) as archive:
            for member in archive.namelist()[::37][:20]:
                data = archive.read(member)
                ours = normalise(resize_and_crop(decode(data), preprocess)[None], preprocess)[0]
                theirs = transform(Image.open(io.BytesIO(data)).convert("RGB")).numpy()

                assert np.array_equal(ours, theirs), member


def test_grey_becomes_rgb():
    assert_same(decode(saved(noise(20, 10, mode="L"), "PNG")), noise(20, 10, mode="L").convert("RGB"))


def test_a_bitmap_of_two_colours_becomes_rgb():
    assert_same(decode(saved(noise(20, 10, mode="1"), "PNG")), noise(20, 10, mode="1").convert("RGB"))


def test_cmyk_becomes_rgb():
    image = noise(20, 10)

    decoded = np.asarray(decode(saved(image.convert("CMYK"), "TIFF"))).astype(int)

    assert np.abs(decoded - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_become_white(mode):
    image = Image.new(mode, (4, 4), (10, 0) if mode == "LA" else (10, 20, 30, 0))
    image.putpixel((1, 2), (10, 255) if mode == "LA" else (10, 20, 30, 255))

    decoded = decode(saved(image, "PNG"))

    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 2)) == ((10, 10, 10) if mode == "LA" else (10, 20, 30))


def test_half_transparent_parts_are_mixed_with_white():
    decoded = decode(saved(Image.new("RGBA", (2, 2), (0, 100, 200, 128)), "PNG"))

    assert np.allclose(decoded.getpixel((0, 0)), (127, 177, 227), atol=1)


def test_palettes_with_and_without_a_transparent_colour():
    image = Image.new("P", (3, 3), 0)
    image.putpalette([9, 8, 7, 200, 100, 50])
    image.putpixel((1, 1), 1)

    assert decode(saved(image, "PNG")).getpixel((0, 0)) == (9, 8, 7)
    assert decode(saved(image, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(saved(image, "PNG", transparency=b"\x00\xff")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(saved(image, "PNG", transparency=0)).getpixel((1, 1)) == (200, 100, 50)
    assert decode(saved(image, "GIF")).getpixel((1, 1)) == (200, 100, 50)


def test_a_colour_key_is_transparent():
    image = Image.new("RGB", (2, 2), (1, 2, 3))
    image.putpixel((0, 0), (5, 5, 5))

    assert decode(saved(image, "PNG", transparency=(1, 2, 3))).getpixel((1, 1)) == (255, 255, 255)
    assert decode(saved(image, "PNG", transparency=(1, 2, 3))).getpixel((0, 0)) == (5, 5, 5)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(kind):
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)

    decoded = np.asarray(decode(saved(Image.fromarray(values), kind)))

    assert decoded[0, :, 0].tolist() == [0, 0, 1, 255]
    assert decoded.shape == (1, 4, 3)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_pixels_are_refused(dtype):
    data = saved(Image.fromarray(np.ones((4, 4), dtype=dtype)), "TIFF")

    with pytest.raises(UnreadableImageError, match="32 bits"):
        decode(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation, kind):
    from PIL import ImageOps

    upright = noise(24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(upright, kind, exif=exif)

    decoded = decode(data)

    assert_same(decoded, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert decoded.size == ((24, 16) if orientation < 5 else (16, 24))


def test_damaged_exif_is_no_reason_to_refuse():
    image = noise(24, 16)

    decoded = decode(saved(image, "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xffgarbage"))

    assert_same(decoded, image)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_stands_for_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}

    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)

    assert decode(data).getpixel((4, 4)) == (255, 0, 0)


def test_one_pixel_fills_the_input():
    image = decode(saved(Image.new("RGB", (1, 1), (10, 20, 30)), "BMP"))

    cropped = resize_and_crop(image, Preprocess(height=8, width=8, crop_share=0.9))

    assert cropped.shape == (8, 8, 3)
    assert (cropped == (10, 20, 30)).all()


def test_a_huge_image_is_refused_before_it_is_decoded():
    bomb = saved(Image.new("1", (20_000, 20_000)), "PNG")
    large = saved(Image.new("1", (9_500, 9_500)), "PNG")

    for data in (bomb, large):  # Pillow raises an error for the first, a warning for the second
        with pytest.raises(UnreadableImageError, match="more than 89,478,485 pixels"):
            decode(data)


def test_a_line_is_refused():
    with pytest.raises(UnreadableImageError, match="10000 x 2: one side is more than 200 times the other"):
        decode(saved(Image.new("L", (10_000, 2)), "PNG"))


def test_a_large_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(pixels, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.png").write_bytes(saved(noise(50, 50), "PNG"))

    with pytest.raises(UnreadableImageError, match="more than 100"):
        decode(saved(noise(50, 50), "PNG"))
    with pytest.raises(UnreadableImageError, match="more than 100"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("draft", [False, True])
def test_a_truncated_image_is_refused_in_one_line(kind, draft):
    data = saved(noise(200, 150), kind)

    for length in (0, 1, 30, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(UnreadableImageError) as caught:
            decode(data[:length], draft=draft)
        assert "\n" not in str(caught.value)


@settings(max_examples=200)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_image_is_decoded_or_refused(kind, changes):
    data = bytearray(saved(noise(40, 30), kind))
    for where, value in changes:
        data[int(where * len(data))] = value

    image, message = None, ""
    try:
        image = decode(bytes(data))
    except UnreadableImageError as error:
        message = str(error)

    assert message.strip() if image is None else image.mode == "RGB"


@pytest.mark.parametrize("data", [b"", b"GARBAGE" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(UnreadableImageError, match=r"empty|not one of JPEG, PNG"):
        decode(data)


def test_formats_outside_the_list_are_refused():
    with pytest.raises(UnreadableImageError, match="not one of JPEG, PNG, BMP, WEBP, TIFF, GIF"):
        decode(saved(noise(20, 20), "PPM"))


def test_a_missing_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(UnreadableImageError, match="No such file"):
        read_image(tmp_path / "none.jpg")


def test_a_draft_says_the_same_as_a_decode():
    data = saved(noise(333, 211), "JPEG")

    assert decode(data).size == (333, 211)
    assert decode(data, draft=True).width < 100


@pytest.mark.parametrize("std", [(0.5, 0.0, 0.5), (0.5, -1.0, 0.5)])
def test_a_deviation_of_zero_is_refused(std):
    with pytest.raises(ValidationError, match="greater than 0"):
        Preprocess(height=8, width=8, std=std)


def test_the_record_alone_loads_neither_numpy_nor_pillow(root: Path):
    code = "import sys, targets.preprocess; print({'numpy', 'PIL', 'torch'} & set(sys.modules))"

    printed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "set()"


def assert_same(image: Image.Image, expected: Image.Image) -> None:
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(expected))
