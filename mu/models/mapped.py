"""Tensors in temporary files that memory maps: beside a model in memory there is no second copy of its weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from mu.core.errors import OutputError

IN_MEMORY = 2**28
"""Bytes of tensors that are kept in memory together; what comes later goes to files."""


class Keeper:
    """Keeps copies of tensors: the first `IN_MEMORY` bytes as they are, the others in files."""

    def __init__(self) -> None:
        self.bytes = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of ``tensor``: on its device, or `on_disk`."""
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor.detach().clone() if self.bytes <= IN_MEMORY else on_disk(tensor)


def on_disk(tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` on the CPU, in a temporary file that is gone once nobody holds the copy.

    The system reads it when it is used, and takes its memory back when others need it. Raises `OutputError` if the
    folder of temporary files has no room.
    """
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    with _temporary() as name:
        with open(name, "wb") as file:
            file.write(raw.data)
        storage = torch.UntypedStorage.from_file(name, shared=False, nbytes=raw.nbytes)
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape)  # type: ignore[call-overload, no-any-return]


@contextmanager
def _temporary() -> Iterator[str]:
    try:
        handle, name = tempfile.mkstemp(prefix="mu-weights-")
        os.close(handle)
        try:
            yield name
        finally:
            with suppress(PermissionError):  # systems that delete no file that is open
                os.unlink(name)
    except OSError as error:
        told = f"{tempfile.gettempdir()} has no room for a model's weights ({error.strerror or error})"
        raise OutputError(f"{told}: free some, or set TMPDIR to another folder") from None
