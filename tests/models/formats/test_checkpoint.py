"""Weight files of any origin: tensors come back bit for bit, nothing else comes in, and nothing in the file ever runs.

Each attack is first run by an ordinary unpickler, to show that it would have worked.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mu.core.errors import ModelError
from mu.models.formats import checkpoint
from mu.models.formats.checkpoint import read_state_dict


class Callback:
    """A class of a training script: on the machine that reads the file it need not exist."""

    def __init__(self, best: Any = None):
        self.best = best


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shared = torch.randn(10)
    kinds = {str(dtype): torch.arange(3).to(dtype) for dtype in checkpoint._STORAGES.values()}
    special = {
        "transposed": torch.randn(4, 5).t(),
        "view": shared[3:7],
        "shared": shared,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "nan": torch.tensor([float("nan"), -0.0]),
    }
    return kinds | special


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
        return tensor.dtype, tensor.shape, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return found.keys() == wanted.keys() and all(bits(found[name]) == bits(wanted[name]) for name in wanted)


def with_pickle(path: Path, program: bytes, base: dict[str, Any]) -> Path:
    """A torch file at ``path`` whose pickle is ``program`` and whose storages are those of ``base``."""
    torch.save(base, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, program if name.endswith("data.pkl") else content)
    return path


def pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


# -- what is read
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_tensors_of_a_pickle_come_back_bit_for_bit(tmp_path: Path, suffix: str):
    wanted = weights()
    torch.save(wanted, tmp_path / f"model{suffix}")
    found = read_state_dict(tmp_path / f"model{suffix}")
    assert same(found, wanted)
    assert found["view"].untyped_storage().data_ptr() == found["shared"].untyped_storage().data_ptr()
    changed = wanted | {"view": wanted["view"] + 1e-6}
    assert not same(found, changed)


def test_tensors_of_a_safetensors_file_come_back_bit_for_bit(tmp_path: Path):
    wanted = {name: tensor.detach().clone().contiguous() for name, tensor in weights().items()}
    save_file(wanted, tmp_path / "model.safetensors")
    assert same(read_state_dict(tmp_path / "model.safetensors"), wanted)


def test_a_checkpoint_of_a_training_is_read_where_torch_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    history = defaultdict(list, {"loss": [np.float64(0.5)]})
    remains = {
        "callbacks": {Callback: Callback(np.float32(1.0)), "lr": np.arange(3)},
        "optimizer_states": [Callback(), {"step": history}],
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "size": torch.Size([3]),
        "seen": {1, 2},
        "global_step": 470_000,
    }
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": model.state_dict() | {"note": Callback()}, **remains}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    monkeypatch.delattr(sys.modules[__name__], "Callback")
    assert same(read_state_dict(path), dict(model.state_dict()))


def test_storages_that_nobody_asked_for_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"state_dict": {"a": torch.ones(3)}, "optimizer": {"moment": torch.ones(5)}}, tmp_path / "model.ckpt")
    sizes: list[int] = []
    read = checkpoint._Archive._storage
    monkeypatch.setattr(
        checkpoint._Archive, "_storage", lambda self, storage: sizes.append(storage.elements) or read(self, storage)
    )
    assert list(read_state_dict(tmp_path / "model.ckpt")) == ["a"]
    assert sizes == [3]


# -- attacks
# --------------------------------------------------------------------------------------------------------------


class Calls:
    """Pickled as the call of ``function`` with ``arguments``; state, if any, is sent after it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """Only so that the pickler takes the result of one call as the function of the next."""


def command(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


PAIRS = "exec in the pairs of a dict"
ATTACKS: dict[str, Callable[[Path], Any]] = {
    "a shell": lambda marker: Calls(os.system, f"touch '{marker}'"),
    "exec": lambda marker: Calls(exec, command(marker)),
    "exec as a part of a tensor": lambda marker: Calls(
        torch._utils._rebuild_parameter, Calls(eval, command(marker)), False, OrderedDict()
    ),
    PAIRS: lambda marker: Calls(OrderedDict, Calls(eval, f"{command(marker)} or []")),
    "a chain of lookups": lambda marker: Calls(Calls(getattr, Calls(__import__, "os"), "system"), f"touch '{marker}'"),
    "a function made by eval": lambda marker: Calls(Calls(eval, "lambda path: open(path, 'w').close()"), str(marker)),
    "the key of a dict": lambda marker: {Calls(exec, command(marker)): 1},
    "the state of an object": lambda marker: Calls(Callback, state={"best": Calls(exec, command(marker))}),
}


@pytest.mark.parametrize("place", ["beside", "inside", "instead"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_file_runs(tmp_path: Path, attack: str, place: str):
    marker = tmp_path / "ran"
    evil = ATTACKS[attack](marker)
    good = {"w": torch.ones(2)}
    path = tmp_path / "model.ckpt"
    torch.save(
        {"beside": {"state_dict": good, "more": evil}, "inside": good | {"evil": evil}, "instead": evil}[place], path
    )

    torch.load(path, weights_only=False)
    assert marker.exists()
    marker.unlink()

    if place == "instead" or attack == PAIRS:
        with pytest.raises(ModelError):
            read_state_dict(path)
    else:
        assert same(read_state_dict(path), good)
    assert not marker.exists()


def victim() -> None: ...


def building(target: str, state: dict[str, Any], call: bytes = b"") -> bytes:
    """A pickle that looks up ``target``, calls it by the opcodes ``call``, and sets the attributes in ``state`` on
    that."""
    return b"\x80\x02c" + target.encode() + b"\n" + call + pickle.dumps((None, state), 2)[2:-1] + b"b."


def test_setting_attributes_on_a_function_works_in_an_ordinary_unpickler():
    pickle.loads(building(f"{__name__}\nvictim", {"__kwdefaults__": {"a": 1}}))
    assert victim.__kwdefaults__ == {"a": 1}


def reachable() -> Any:
    """All that a pickle could try to change: our stand-ins, and what they stand for."""
    real = (
        torch._utils._rebuild_tensor_v2,
        torch._utils._rebuild_parameter,
        torch.FloatStorage,
        Callback,
        checkpoint._ignore,
    )
    ours = (checkpoint._Nothing, checkpoint._Dict, checkpoint._Function, checkpoint._Strided, checkpoint._Storage)
    functions = [known.apply for known in checkpoint._KNOWN.values() if isinstance(known, checkpoint._Function)]
    defaults = [
        (getattr(thing, "__defaults__", 0), getattr(thing, "__kwdefaults__", 0)) for thing in (*real, *functions)
    ]
    return (
        defaults,
        [dict(vars(thing)) for thing in (*real, *ours)],
        {key: tuple(known) for key, known in checkpoint._KNOWN.items()},
    )


FOUR = b"(NNNNtR"
TARGETS = [
    ("torch._utils\n_rebuild_tensor_v2", b""),
    ("torch._utils\n_rebuild_tensor_v2", FOUR),
    ("torch._utils\n_rebuild_parameter", b""),
    ("collections\nOrderedDict", b""),
    ("collections\nOrderedDict", b")R"),
    ("torch\nFloatStorage", b""),
    ("os\nsystem", b""),
    ("os\nsystem", FOUR),
    ("os\nsystem", b")\x81"),
    (f"{__name__}\nCallback", b""),
]


@pytest.mark.parametrize(("target", "call"), TARGETS)
def test_no_object_in_reach_of_a_pickle_takes_an_attribute(tmp_path: Path, target: str, call: bytes):
    before = reachable()
    for name in (
        "apply",
        "dtype",
        "storage",
        "__defaults__",
        "__kwdefaults__",
        "__call__",
        "__setstate__",
        "__class__",
        "x",
    ):
        for value in ((1,), {"a": 1}, Callback):
            bad = with_pickle(tmp_path / "bad.ckpt", building(target, {name: value}, call), {"w": torch.ones(2)})
            with pytest.raises(ModelError):
                read_state_dict(bad)
    assert reachable() == before


def test_nothing_is_imported(tmp_path: Path):
    unused = "this"
    assert unused not in sys.modules
    program = b"\x80\x02}(U\x01ac" + unused.encode() + b"\ns\nu."
    with pytest.raises(ModelError, match=r"model\.ckpt.*\.safetensors"):
        read_state_dict(with_pickle(tmp_path / "model.ckpt", program, {"w": torch.ones(2)}))
    assert unused not in sys.modules
    pickle.loads(program)
    assert sys.modules.pop(unused)


def describing(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The pickle of ``{"w": tensor}`` with a tensor so described over storage 0, which has four numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if found == "its storage" else None

    buffer = io.BytesIO()
    tensor = Calls(torch._utils._rebuild_tensor_v2, "its storage", offset, size, stride, False, OrderedDict())
    Pickler(buffer, 2).dump({"w": tensor})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (9,), (1,)),
        (3, (2,), (1,)),
        (0, (2,), (8,)),
        (-1, (1,), (1,)),
        (3, (2,), (-1,)),
        (0, (2**62, 4), (4, 1)),
        (0, (-1,), (1,)),
    ],
)
def test_no_tensor_reaches_outside_its_storage(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
):
    base = {"w": torch.arange(4.0)}
    assert same(read_state_dict(with_pickle(tmp_path / "good.ckpt", describing(0, (4,), (1,)), base)), base)
    with pytest.raises(ModelError, match=r"bad\.ckpt.*RuntimeError"):
        read_state_dict(with_pickle(tmp_path / "bad.ckpt", describing(offset, size, stride), base))


def test_a_damaged_pickle_gives_tensors_or_one_clear_line(tmp_path: Path):
    torch.save({"state_dict": weights(), "callbacks": {"a": Callback(np.float64(1))}}, tmp_path / "good.ckpt")
    program = pickle_of(tmp_path / "good.ckpt")
    dice = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(program)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        try:
            read_state_dict(with_pickle(tmp_path / "bad.ckpt", bytes(damaged), weights()))
        except ModelError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


# -- files that are no checkpoints
# ----------------------------------------------------------------------------------------


def saved(path: Path, content: Any = None) -> bytes:
    (save_file if path.suffix == ".safetensors" else torch.save)(content or {"w": torch.ones(1000)}, path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(("keep", "what"), [(0, "empty"), (0.5, "truncated"), (0.99, "truncated")])
def test_empty_and_truncated_files_are_named(tmp_path: Path, suffix: str, keep: float, what: str):
    path = tmp_path / f"model{suffix}"
    content = saved(path)
    assert read_state_dict(path)
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ModelError, match=f"{path.name}.*{what}"):
        read_state_dict(path)


def test_one_changed_byte_in_a_tensor_is_noticed(tmp_path: Path):
    path = tmp_path / "model.ckpt"
    content = bytearray(saved(path))
    content[content.index(torch.ones(1000).numpy().tobytes()) + 17] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.ckpt.*CRC"):
        read_state_dict(path)


def test_a_storage_of_another_size_than_announced_is_refused(tmp_path: Path):
    torch.save({"w": torch.ones(4)}, tmp_path / "four.ckpt")
    path = with_pickle(tmp_path / "model.ckpt", pickle_of(tmp_path / "four.ckpt"), {"w": torch.ones(5)})
    with pytest.raises(ModelError, match=r"\b20\b.*\b4\b"):
        read_state_dict(path)


CONTENTS: dict[str, tuple[str, bytes, str]] = {
    "page": ("model.ckpt", b"<!doctype html><html>sign in</html>", "an HTML page"),
    "page as safetensors": ("model.safetensors", b"\n <!DOCTYPE HTML><html>sign in</html>", "an HTML page"),
    "PNG as safetensors": ("model.safetensors", b"\x89PNG\r\n\x1a\n" + bytes(90), "a PNG image"),
    "JPEG as checkpoint": ("model.ckpt", b"\xff\xd8\xff\xe0" + bytes(90), "a JPEG image"),
    "JSON as safetensors": ("model.safetensors", b'{"error": "Repository not found", "a": [1, 2]}', "a JSON file"),
    "JSON with a mark": ("model.safetensors", b"\xef\xbb\xbf[1, 2, 3, 4, 5, 6, 7, 8]", "a JSON file"),
    "words": ("model.safetensors", b"Access to model X is restricted. You must log in.", "a text file"),
    "GGUF": ("model.safetensors", b"GGUF\x03\0\0\0" + bytes(90), "GGUF"),
    "archive": ("model.bin", b"\x1f\x8b\x08" + bytes(90), "a gzip archive"),
    "torch as safetensors": ("model.safetensors", b"PK\x03\x04" + bytes(90), r"rename it to model\.ckpt"),
    "safetensors as torch": (
        "model.ckpt",
        bytes([90, 0, 0, 0, 0, 0, 0, 0]) + b"{" + bytes(90),
        r"rename it to model\.sa",
    ),
    "cut safetensors": ("model.safetensors", bytes([90, 0, 0, 0, 0, 0, 0, 0]) + b'{"w": ', "truncated"),
    "plain pickle": ("model.bin", pickle.dumps({"w": 1}), r"1\.6.*torch\.load.*\.safetensors"),
    "pointer": ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "picture": ("model.png", b"\x89PNG", r"\.ckpt, \.pt"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_other_files_are_refused_with_what_to_do(tmp_path: Path, case: str):
    name, content, message = CONTENTS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_state_dict(tmp_path / name)


def test_missing_files_folders_and_other_archives_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"nowhere\.ckpt.*No such file"):
        read_state_dict(tmp_path / "nowhere.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(ModelError, match=r"folder\.ckpt.*not a file"):
        read_state_dict(tmp_path / "folder.ckpt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelError, match=r"other\.pt.*torch"):
        read_state_dict(tmp_path / "other.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"old\.pt.* 1\.6.*\.safetensors"):
        read_state_dict(tmp_path / "old.pt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ModelError, match="not a file"):
        read_state_dict(tmp_path / "pipe.safetensors")


def test_the_header_of_a_safetensors_file_may_have_any_size(tmp_path: Path):
    """Its first byte is that of a JSON file for 123, of a pickle for 128, of a torch file for 80."""
    wanted = {"w": torch.arange(3.0)}
    for size in range(1, 260):
        save_file(wanted, tmp_path / "model.safetensors", {"title": "x" * size})
        assert torch.equal(read_state_dict(tmp_path / "model.safetensors")["w"], wanted["w"])


def test_the_tensors_of_a_torchscript_program_are_read_and_its_code_is_not_run(tmp_path: Path):
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.count = torch.nn.Linear(2, 3), 7
            self.register_buffer("size", torch.tensor(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    module = torch.nn.Sequential(Inner(), torch.nn.LayerNorm(3)).half()
    torch.jit.script(module).save(str(tmp_path / "program.pt"))
    assert same(read_state_dict(tmp_path / "program.pt"), dict(module.state_dict()))


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], {"state_dict": {}}, {3: torch.ones(2)}, torch.nn.Linear(2, 2), None]
)
def test_files_without_named_tensors_are_refused(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt.*\.safetensors"):
        read_state_dict(tmp_path / "model.pt")


def test_tensors_of_a_kind_that_is_not_read_are_named(tmp_path: Path):
    torch.save({"w": torch.ones(2, dtype=torch.complex64)}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt.*\.safetensors"):
        read_state_dict(tmp_path / "model.pt")


def test_a_compressed_archive_is_refused_before_it_unfolds(tmp_path: Path):
    path = tmp_path / "model.pt"
    saved(path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match="zip"):
        read_state_dict(path)
