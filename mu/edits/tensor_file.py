"""Write named tensors as a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mu.core.errors import OutputError
from mu.core.files import atomic_path, writing


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically. The same content gives the same bytes. Raises `OutputError`."""
    if Path(path).suffix != ".safetensors":
        raise OutputError(f"{path} is not a .safetensors path: edits are saved as .safetensors")
    try:
        with writing(path), atomic_path(path) as partial:
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            safetensors.torch.save_file(contiguous, partial, metadata=dict(metadata))
            _sort_metadata(partial)
    except SafetensorError as error:
        raise OutputError(f"cannot write to {path}: {error}") from None


def _sort_metadata(path: Path) -> None:
    """Sort the metadata's keys in place: safetensors writes them in an order that differs between runs."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))
