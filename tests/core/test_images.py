"""Images of every mode become 8-bit RGB, from files as they are found."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mu.core.errors import DataError
from mu.core.images import rgb, shown_size
from mu.data.pairs import decode
from mu.diffusion.image_files import image_size, read_images, read_pixels
from mu.models import load

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


SIXTEEN = Image.fromarray((RAMP * 65535).round().astype(np.uint16))
KINDS: dict[str, tuple[Image.Image, str]] = {
    "16-bit PNG": (SIXTEEN, "PNG"),
    "16-bit TIFF": (SIXTEEN, "TIFF"),
    "32-bit whole numbers": (Image.fromarray((RAMP * 65535).round().astype(np.int32)), "TIFF"),
    "floats to 1": (Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "floats to 255": (Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"),
    "8-bit grey": (Image.fromarray((RAMP * 255).round().astype(np.uint8)), "PNG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_grey_levels_are_kept(kind: str, tmp_path: Path) -> None:
    image, form = KINDS[kind]
    content = saved(image, form)
    (tmp_path / "image").write_bytes(content)
    for found in (decode(content, "image"), Image.open(io.BytesIO(content))):
        levels = np.asarray(rgb(found))
        assert levels.shape == (8, 8, 3) and levels.dtype == np.uint8
        assert np.abs(levels[..., 0] / 255 - RAMP).max() < 0.003
    assert np.abs(read_images([tmp_path / "image"])[0, 0].numpy() - RAMP).max() < 0.003


def test_pillows_own_conversion_makes_them_white() -> None:
    """The control: without the reader, all but the darkest 255 of 65535 levels are lost."""
    assert (np.asarray(SIXTEEN.convert("RGB")) == 255).mean() > 0.9


def test_cmyk_is_read_with_its_profile_or_without() -> None:
    colours = Image.new("RGB", (8, 8), (200, 60, 30))
    plain = saved(colours.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(np.asarray(decode(plain, "x")).astype(int) - [200, 60, 30]).max() < 8
    damaged = saved(colours.convert("CMYK"), "TIFF", icc_profile=b"no profile")
    assert np.abs(np.asarray(decode(damaged, "x")).astype(int) - [200, 60, 30]).max() < 2
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # a profile of another kind of image
    assert decode(saved(colours.convert("CMYK"), "TIFF", icc_profile=other), "x").mode == "RGB"


def half(mode: str) -> Image.Image:
    """Red on the left, nothing at all on the right: there the colour is one that nobody sees."""
    image = Image.new("RGBA", (8, 8), (200, 60, 30, 255))
    image.paste((0, 255, 0, 0), (4, 0, 8, 8))
    if mode == "P":
        palette = Image.new("P", (8, 8), 0)
        palette.putpalette([200, 60, 30, 0, 255, 0])
        palette.paste(1, (4, 0, 8, 8))
        palette.info["transparency"] = 1
        return palette
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode: str, tmp_path: Path) -> None:
    content = saved(half(mode), "PNG")
    opened = Image.open(io.BytesIO(content))
    assert (opened.mode, opened.has_transparency_data) == (mode, True)
    levels = np.asarray(decode(content, "x"))
    left = half(mode).crop((0, 0, 4, 8)).convert("RGB")
    assert (levels[:, 4:] == 255).all() and (levels[:, :4] == np.asarray(left)).all()
    assert (np.asarray(opened.convert("RGB"))[:, 4:] != 255).any(), "control: Pillow shows what lies below"
    (tmp_path / "image.png").write_bytes(content)
    assert (read_pixels(tmp_path / "image.png") == levels).all()


@pytest.mark.parametrize(("mode", "see_through"), [("L", 255), ("RGB", (0, 255, 0)), ("1", 1)])
def test_one_colour_may_stand_for_nothing(mode: str, see_through: object) -> None:
    image = Image.new(mode, (8, 8), 0)
    image.paste(see_through, (4, 0, 8, 8))  # type: ignore[arg-type]
    kept = image.convert("RGB")
    levels = np.asarray(decode(saved(image, "PNG", transparency=see_through), "x"))
    assert (levels[:, 4:] == 255).all() and (levels[:, :4] == 0).all()
    assert (np.asarray(decode(saved(image, "PNG"), "x")) == np.asarray(kept)).all(), "control: nothing is transparent"


def test_half_transparent_is_half_white() -> None:
    faint = saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")
    assert np.abs(np.asarray(decode(faint, "x")).astype(int) - 127).max() <= 1


UPRIGHT = Image.fromarray(np.add.outer(np.arange(6) * 40, np.arange(4) * 10).astype(np.uint8)[..., None].repeat(3, 2))
TURNED = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""How a camera stores `UPRIGHT` with each of EXIF's orientations."""


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", TURNED)
def test_pictures_are_upright(orientation: int, kind: str, tmp_path: Path) -> None:
    turn, exif = TURNED[orientation], Image.Exif()
    exif[0x0112] = orientation
    stored = UPRIGHT if turn is None else UPRIGHT.transpose(turn)
    file = tmp_path / "image"
    best = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    file.write_bytes(saved(stored, kind, exif=exif, **best))

    def off(pixels: np.ndarray) -> int:
        return int(np.abs(pixels.astype(int) - np.asarray(UPRIGHT)).max())

    assert image_size(file) == UPRIGHT.size and off(read_pixels(file)) <= (3 if kind == "JPEG" else 0)
    once = decode(file.read_bytes(), "x")
    assert (np.asarray(rgb(once)) == np.asarray(once)).all(), "it is turned once"
    if orientation > 1:
        assert stored.size != UPRIGHT.size or off(np.asarray(stored)) >= 10, "control"


@pytest.mark.parametrize("orientation", [0, 9, 200])
def test_the_head_of_a_file_tells_the_size_of_its_picture(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert shown_size(image) == rgb(image).size == (8, 4)


def test_a_damaged_orientation_is_none(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(saved(UPRIGHT, "PNG", exif=b"Exif\x00\x00no tags at all"))
    assert (read_pixels(tmp_path / "image.png") == np.asarray(UPRIGHT)).all()


WHOLE = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)), "PNG")
BROKEN = {
    "truncated.png": WHOLE[: len(WHOLE) // 2], "head-only.png": WHOLE[:40], "empty.png": b"", "text.jpg": b"no image",
    "damaged.png": WHOLE[:60] + b"\xff" * 40 + WHOLE[100:], "damaged-chunk.png": WHOLE[:33] + b"\x00" * 8 + WHOLE[41:],
    "page.png": b"<html><body>404</body></html>",
    "truncated.jpg": saved(UPRIGHT.resize((64, 64)), "JPEG")[:400],
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_whole_image_is_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    for read in (read_pixels, lambda path: decode(path.read_bytes(), str(path))):
        with pytest.raises(DataError, match=name) as caught:
            read(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / name).write_bytes(WHOLE)
    assert read_pixels(tmp_path / name).shape == (64, 64, 3), "control"


def test_clip_reads_sixteen_bits_as_eight() -> None:
    clip = load("canvas-clip", device="cpu")
    eight = KINDS["8-bit grey"][0].convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
    sixteen = SIXTEEN.resize((64, 64), Image.Resampling.NEAREST)
    assert (clip.preprocess([sixteen]) - clip.preprocess([eight])).abs().max() < 0.05  # type: ignore[union-attr]
    white = clip.preprocess([Image.new("RGB", (64, 64), "white")])  # type: ignore[union-attr]
    assert (clip.preprocess([sixteen]) - white).abs().max() > 1, "control"  # type: ignore[union-attr]
