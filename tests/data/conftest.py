"""Small images and shards for the readers to find, whole and broken."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mu.data.shards import add_member

Encode = Callable[..., bytes]
Tar = Callable[[Path, Mapping[str, bytes | str]], Path]


@pytest.fixture(scope="session")
def encoded() -> Encode:
    """``encoded(k)`` is a 24x16 image of its own for each k, as JPEG unless another ``kind`` is asked for."""

    def encode(k: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
        pixels = np.random.default_rng(k).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, kind)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def tar() -> Tar:
    """``tar(path, {member: content})`` writes an archive in that order."""

    def write(path: Path, members: Mapping[str, bytes | str]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            for name, content in members.items():
                add_member(archive, name, content.encode() if isinstance(content, str) else content)
        return path

    return write
