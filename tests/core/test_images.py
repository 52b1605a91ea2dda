"""Images of every mode become 8-bit RGB, from files as they are found."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mu.core.images import rgb
from mu.data.pairs import decode
from mu.diffusion.image_folder import read_images
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


def test_clip_reads_sixteen_bits_as_eight() -> None:
    clip = load("canvas-clip", device="cpu")
    eight = KINDS["8-bit grey"][0].convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
    sixteen = SIXTEEN.resize((64, 64), Image.Resampling.NEAREST)
    assert (clip.preprocess([sixteen]) - clip.preprocess([eight])).abs().max() < 0.05  # type: ignore[union-attr]
    white = clip.preprocess([Image.new("RGB", (64, 64), "white")])  # type: ignore[union-attr]
    assert (clip.preprocess([sixteen]) - white).abs().max() > 1, "control"  # type: ignore[union-attr]
