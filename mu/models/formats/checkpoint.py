"""Read the tensors of a weight file without running any code that it contains.

A ``.safetensors`` file holds tensors only. A ``.ckpt``, ``.pt``, ``.pth`` or ``.bin`` file is a pickle. A pickle is a
program that may call any function that can be imported. Published checkpoints also hold objects from training
(callbacks, numpy scalars), so torch's ``weights_only`` refuses them. The unpickler here imports nothing. The few names
that tensors need give descriptions of tensors, and every other name gives `_Nothing`. Afterwards the tensors of the
state dict, and no others, are read from the file.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mu.core.errors import ModelError, as_edit, quoted

PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
SUFFIXES = {".safetensors"} | PICKLES
_BEGINNINGS = {
    b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image",
    b"RIFF": "a WebP image or a sound",
    b"BM": "a BMP image", b"%PDF": "a PDF document", b"<?xml": "an XML document", b"<svg": "an SVG image",
    b"<!doctype": "an HTML page", b"<html": "an HTML page", b"{": "a JSON file", b"[": "a JSON file",
    b"GGUF": "a GGUF file of llama.cpp", b"\x1f\x8b": "a gzip archive", b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive", b"\x89HDF": "an HDF5 file of Keras", b"\x93NUMPY": "a numpy array",
}  # fmt: skip
"""How files of other kinds begin, without leading spaces and in small letters for text."""


_ADVICE = {
    "an HTML page": "download the file that the page links to",
    "a JSON file": "name the file with the tensors, or the folder of the model",
}


def other_kind(head: bytes) -> str | None:
    """What a file that begins with ``head`` is, if it is no weight file; None if it may be one."""
    if _is_safetensors(head):
        return None
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, kind in _BEGINNINGS.items():
        if head.startswith(start) or (start.isascii() and text.lower().startswith(start.lower())):
            return kind
    if len(head) > 8 and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "a text file"
    return None


def _is_safetensors(head: bytes) -> bool:
    """True if the file begins with the size of a header, below 4 GiB, and the header's first sign."""
    return head[4:9] == b"\0\0\0\0{"


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files, which have none."""
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except Exception as error:  # as in `_read_safetensors`
        raise ModelError(f"{path} is corrupt ({_line(error)}): download or copy it again") from None


def first_of_types(path: Path, types: tuple[str, ...]) -> str | None:
    """The first tensor of a safetensors file whose number type, as its header spells it, is one of ``types``."""
    with _told(path), safe_open(path, "pt") as file:
        return next((name for name in file.keys() if file.get_slice(name).get_dtype() in types), None)  # noqa: SIM118


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Name -> tensor of a weight file, on the CPU. Other objects are left out; the entries `WRAPPERS` are unwrapped.

    Safe for files of any origin. Raises `ModelError` for a file that is missing, empty, truncated, corrupt, in torch's
    format from before 1.6, or without tensors.
    """
    path = Path(path)
    head = _checked_head(path)
    tensors = _read_pickle(path, head) if path.suffix.lower() in PICKLES else _read_safetensors(path)
    if not tensors:
        raise ModelError(f"{path} holds no named tensors: export the model's state dict, best as .safetensors")
    return tensors


def _checked_head(path: Path) -> bytes:
    """The first bytes of the weight file ``path``. Raises `ModelError` if its name or they belong to another kind."""
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"{path} is not a weight file: its name must end in one of {', '.join(sorted(SUFFIXES))}")
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is not a file: name a weight file or a model's folder")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error}): check the name") from None
    if not head:
        raise ModelError(f"{path} is empty: download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer and not the weights: run `git lfs pull` in its folder")
    if kind := other_kind(head):
        raise ModelError(f"{path} is {kind} and not the weights: {_ADVICE.get(kind, 'check the download')}")
    pickled = path.suffix.lower() in PICKLES
    if not pickled and not _is_safetensors(head) and head.startswith((b"PK", b"\x80")):
        raise ModelError(f"{path} is a torch file and not a safetensors file: rename it to {path.stem}.ckpt")
    if pickled and _is_safetensors(head):
        raise ModelError(f"{path} is a safetensors file: rename it to {path.stem}.safetensors")
    return head


class WeightFile:
    """The tensors of an open weight file, each read when it is asked for; see `open_weights`.

    Of a pickle, mappings inside mappings count too, with their keys joined: ``{"unet": {"conv_in.weight": ...}}`` holds
    ``unet.conv_in.weight``.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]):
        self.path, self.shapes, self._read = path, dict(shapes), read

    def read(self, name: str) -> Tensor:
        """The tensor ``name``, on the CPU. Raises `ModelError` if it cannot be read."""
        with _told(self.path):
            return self._read(name)


@contextmanager
def open_weights(path: Path | str) -> Iterator[WeightFile]:
    """Open a weight file to read its tensors one at a time. Raises `ModelError` as `read_state_dict` does."""
    path = Path(path)
    head, pickled = _checked_head(path), path.suffix.lower() in PICKLES
    with ExitStack() as stack:
        opened: Any = stack.enter_context(_opened_zip(path, head)) if pickled else None
        with _told(path):
            if pickled:
                archive = _Archive(opened)
                described = dict(_nested(_unwrapped(archive.content()), "", 0, set()))
                shapes = {name: tuple(found.size) for name, found in described.items()}
                file = WeightFile(path, shapes, lambda name: archive.alone(described[name]))
            else:
                opened = stack.enter_context(safe_open(path, "pt"))
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
                file = WeightFile(path, shapes, opened.get_tensor)
        if not file.shapes:
            raise ModelError(f"{path} holds no named tensors: export the model's state dict, best as .safetensors")
        yield file


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _told(path):
        return load_file(path)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raise every error inside the block as a `ModelError` about the file at ``path``.

    The header of a safetensors file is arbitrary JSON, and a hostile pickle can make any step fail with any error.
    """
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{path} {error}") from None
    except Exception as error:
        kind = "truncated or corrupt" if isinstance(error, SafetensorError) else "corrupt"
        raise ModelError(f"{path} is {kind} ({_line(error)}): download or copy it again") from None


def _read_pickle(path: Path, head: bytes) -> dict[str, Tensor]:
    with _opened_zip(path, head) as archive, _told(path):
        return _Archive(archive).state_dict()


@contextmanager
def _opened_zip(path: Path, head: bytes) -> Iterator[zipfile.ZipFile]:
    if not zipfile.is_zipfile(path):
        if head.startswith(b"PK"):
            raise ModelError(f"{path} is truncated: download or copy it again")
        if head.startswith(b"\x80"):
            advice = "if you trust it, load it with torch.load and save it as .safetensors"
            raise ModelError(f"{path} is in torch's format from before 1.6, which cannot be read safely: {advice}")
        raise ModelError(f"{path} is not a torch file: download it again, and check that the link leads to the weights")
    with ExitStack() as stack:
        with _told(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
        yield archive


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


# -- What a pickle can get hold of -------------------------------------------------------------------------------------
#
# A pickle reaches plain data and the objects below. It can call them and try to set attributes on them (the BUILD
# instruction); neither may have an effect. So they have no ``__dict__`` and no attribute that can be set, and
# ``__setstate__`` drops any state that a file sends. Plain functions and dataclasses are unsafe: both accept a state.


def _ignore(*_: Any, **__: Any) -> None:
    return None


class _Nothing:
    """Replaces every class, function and object that tensors do not need. Accepts all calls and does nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> _Nothing:
        return object.__new__(cls)

    __init__ = _ignore
    __setstate__ = __setitem__ = append = extend = add = staticmethod(_ignore)

    def __call__(self, *_: Any, **__: Any) -> _Nothing:
        return self


class _Dict(dict):
    """Replaces OrderedDict. Its state, torch's version number of each module, is dropped."""

    __slots__ = ()
    __setstate__ = staticmethod(_ignore)


class _Module:
    """Replaces every class of a TorchScript program. It keeps the attributes of the module, and runs nothing."""

    attributes: dict[Any, Any]
    __slots__ = ("attributes",)

    def __new__(cls, *_: Any, **__: Any) -> _Module:
        module = object.__new__(cls)
        module.attributes = {}
        return module

    __init__ = _ignore

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes.update(state)


class _StorageType(NamedTuple):
    dtype: torch.dtype


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    elements: int


class _Strided(NamedTuple):
    """Description of a tensor that is still in the file."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Function(NamedTuple):
    apply: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.apply(*arguments)


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Function(
        lambda storage, offset, size, stride, *_: _Strided(storage, offset, size, stride)
    ),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda tensor, *_: tensor),
    ("collections", "OrderedDict"): _Function(_Dict),
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        return _KNOWN.get((module, name), _Nothing)

    def persistent_load(self, identity: Any) -> _Storage | _Nothing:
        _, kind, key, _, count = identity
        return _Storage(kind.dtype, key, count) if isinstance(kind, _StorageType) else _Nothing()


# -- The file ----------------------------------------------------------------------------------------------------------


class _Archive:
    """A torch zip file: one pickle, and one member with the bytes of each storage. Raises `ModelError` "<path> ..."."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        members = archive.namelist()
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ModelError("is a zip file but not a torch file: name the weight file itself")
        self.folder = pickles[0].removesuffix("data.pkl")
        if self.folder + "byteorder" in members and self._member("byteorder") != b"little":
            raise ModelError("was written on a big-endian machine: save it as .safetensors there")
        self.storages: dict[_Storage, Tensor] = {}

    def content(self) -> Any:
        """The unpickled content, with a `_Strided` for each tensor."""
        with self.archive.open(self._info("data.pkl")) as file:
            return _Unpickler(file, encoding="utf-8").load()

    def state_dict(self) -> dict[str, Tensor]:
        content = self.content()
        found = {name: self._tensor(found) for name, found in _entries(content)}
        if not found and (inner := next(_nested(_unwrapped(content), "", 0, set()), None)):
            raise ModelError(
                f"holds no tensors by themselves, but {quoted(inner[0])}: {as_edit(str(self.archive.filename))}"
            )
        return found

    def alone(self, found: _Strided) -> Tensor:
        """One tensor. Only the storage that was read last is kept: several tensors may lie in it."""
        self.storages = {storage: kept for storage, kept in self.storages.items() if storage == found.storage}
        return self._tensor(found)

    def _tensor(self, found: _Strided) -> Tensor:
        if not isinstance(found.storage, _Storage):
            raise ModelError("holds a kind of tensors that mu does not read: save it as .safetensors")
        if found.storage not in self.storages:
            self.storages[found.storage] = self._storage(found.storage)
        return self.storages[found.storage].as_strided(found.size, found.stride, found.offset)

    def _storage(self, storage: _Storage) -> Tensor:
        content = self._member(f"data/{storage.key}")
        if len(content) != storage.elements * storage.dtype.itemsize:
            raise ValueError(
                f"storage {storage.key} has {len(content)} bytes, not {storage.elements} {storage.dtype} as stated"
            )
        return (
            torch.frombuffer(bytearray(content), dtype=storage.dtype)
            if content
            else torch.empty(0, dtype=storage.dtype)
        )

    def _member(self, name: str) -> bytes:
        return self.archive.read(self._info(name))

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self.archive.getinfo(self.folder + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ModelError("is a compressed zip file, which torch does not write: save it as .safetensors")
        return info


WRAPPERS = ("state_dict", "model_state_dict")
"""Entries that hold the tensors of a file with other things beside."""
DEEPEST = 100
"""Modules inside modules of a TorchScript program, and mappings inside mappings."""


def _entries(content: Any) -> Iterator[tuple[str, _Strided]]:
    content = _unwrapped(content)
    if isinstance(content, _Module):
        yield from _inside(content, "", 0)
    elif isinstance(content, dict):
        yield from (
            (name, found) for name, found in content.items() if isinstance(name, str) and isinstance(found, _Strided)
        )


def _unwrapped(content: Any) -> Any:
    """The state dict inside an entry of `WRAPPERS`; other content as it is."""
    if isinstance(content, dict):
        return next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), content)
    return content


def _nested(content: Any, place: str, depth: int, seen: set[int]) -> Iterator[tuple[str, _Strided]]:
    """The tensors of mappings inside mappings, by their joined keys. A mapping that occurs twice counts once."""
    if depth > DEEPEST:
        raise ValueError(f"mappings are nested deeper than {DEEPEST}")
    if isinstance(content, _Module):
        yield from _inside(content, place, 0)
    if not isinstance(content, dict) or id(content) in seen:
        return
    seen.add(id(content))
    for name, value in content.items():
        if isinstance(value, _Strided):
            yield f"{place}{name}", value
        else:
            yield from _nested(value, f"{place}{name}.", depth + 1, seen)


def _inside(module: _Module, place: str, depth: int) -> Iterator[tuple[str, _Strided]]:
    """The tensors of a TorchScript program, by the names that its state dict has."""
    if depth > DEEPEST:
        raise ValueError(f"modules are nested deeper than {DEEPEST}")
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _inside(value, f"{place}{name}.", depth + 1)
        elif isinstance(value, _Strided) and isinstance(name, str):
            yield f"{place}{name}", value
