"""A bank on disk: what it promises about models, files, the log and hostile folders; and what protects what, by direct
sums."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mu.core.errors import EditError, MuError, OutputError
from mu.edits.bank import Bank
from mu.edits.bank_folder import BankFolder, sha256
from mu.edits.edit import EditInfo, described
from mu.edits.export import export
from mu.edits.files import open_edit
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.protection import Leak, leaks
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter, select

KEYS = ("unet.*.attn2.to_k.weight", "unet.*.attn2.to_v.weight")


def embedding(model: DiffusionModel, prompt: str) -> Tensor:
    """(tokens, d) in float64."""
    return model.encode([prompt]).sequence[0].double()


def shift_of(
    model: DiffusionModel, concept: str, protects: tuple[str, ...] = (), seed: int = 0, extra: str = "", rank: int = 0
) -> Any:
    """An edit of all cross-attention keys and values that does nothing to the prompts it ``protects``."""
    g = torch.Generator().manual_seed(seed)
    shifts: dict[str, Tensor] = {}
    for name in select(model, KEYS):
        out, d = find_parameter(model, name).shape
        shift = torch.randn(out, d, generator=g, dtype=torch.float64) * 0.05
        if protects:
            rows = torch.cat([embedding(model, prompt) for prompt in protects])
            _, s, v = torch.linalg.svd(rows)
            null = v[int((s > 1e-12 * s[0]).sum()) :]
            assert len(null) > 0
            shift = shift @ null.T @ null
        shifts[name] = shift.float()
    if extra:
        shifts[extra] = torch.randn(find_parameter(model, extra).shape, generator=g) * 0.05
    info = EditInfo("test", (concept,), protects=protects, **described(model, list(shifts)))
    if not rank:
        return WeightEdit(shifts, info)
    thin = {name: torch.linalg.svd(shift, full_matrices=False) for name, shift in shifts.items()}
    return LowRankEdit(
        {n: Factors(v[:rank], u[:, :rank] * s[:rank], float(rank)) for n, (u, s, v) in thin.items()}, info
    )


def noise(model: DiffusionModel, prompt: str = "a neon star") -> Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    return model.predict_noise(x, 500, model.encode([prompt])).detach()


def output(folder: BankFolder, model: DiffusionModel) -> Tensor:
    with folder.open(model).applied():
        return noise(model)


@pytest.fixture
def bank(tiny: DiffusionModel, tmp_path: Path) -> BankFolder:
    """``neon`` at strength 1, ``pop art`` at 0.5."""
    folder = BankFolder(tmp_path / "bank")
    folder.add(tiny, shift_of(tiny, "neon"), reason="first")
    folder.add(tiny, shift_of(tiny, "pop art", seed=1), strength=0.5)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# -- laws
# -------------------------------------------------------------------------------------------------------------------


def test_it_holds_what_the_bank_in_memory_holds(bank: BankFolder, tiny: DiffusionModel) -> None:
    memory = Bank(tiny, [shift_of(tiny, "neon"), shift_of(tiny, "pop art", seed=1)])
    with memory.applied([1.0, 0.5]):
        wanted = noise(tiny)
    assert torch.equal(output(bank, tiny), wanted)
    with memory.applied():  # control: the strength counts
        assert not torch.allclose(noise(tiny), wanted, atol=1e-5)
    assert sorted(files(bank.folder)) == ["bank.json", "log.jsonl", "neon.safetensors", "pop-art.safetensors"]


def test_restoring_gives_the_base_back_and_leaves_the_others(
    bank: BankFolder, tiny: DiffusionModel, snapshot: Callable
) -> None:
    base, weights, both = noise(tiny), snapshot(tiny), output(bank, tiny)
    bank.restore("neon")
    with shift_of(tiny, "pop art", seed=1).applied(tiny, 0.5):
        alone = noise(tiny)
    assert torch.equal(output(bank, tiny), alone), "as if neon had never been there"
    bank.restore("pop art")
    assert torch.equal(output(bank, tiny), base) and snapshot(tiny) == weights
    bank.erase("pop art", "neon")
    assert torch.equal(output(bank, tiny), both) and not torch.equal(both, base)


def test_removing_deletes_the_edit_and_no_other(bank: BankFolder, tiny: DiffusionModel) -> None:
    kept = files(bank.folder)
    bank.remove("neon", reason="replaced")
    assert [entry.concept for entry in bank.read().edits] == ["pop art"]
    now = files(bank.folder)
    assert "neon.safetensors" not in now and now["pop-art.safetensors"] == kept["pop-art.safetensors"]
    bank.add(tiny, shift_of(tiny, "neon", seed=5))
    assert bank.open(tiny).edits.keys() == {"neon", "pop art"}


def test_the_log_is_complete_and_only_grows(bank: BankFolder, tiny: DiffusionModel, tmp_path: Path) -> None:
    hashes = {entry.concept: entry.sha256 for entry in bank.read().edits}
    grown = bank.log.read_bytes()
    steps: list[Callable[[], object]] = [
        lambda: bank.restore("neon", reason='the artist agreed,\n"in writing"\u2028'),
        lambda: bank.erase("neon", strength=0.25, reason="Größe"),
        lambda: bank.merge(tiny, tmp_path / "unet.safetensors", "unet", reason="release"),
        lambda: bank.remove("pop art", "neon"),
    ]
    for step in steps:
        step()
        assert bank.log.read_bytes().startswith(grown) and bank.log.read_bytes().count(b"\n") == grown.count(b"\n") + 1
        grown = bank.log.read_bytes()
    rows = bank.history()
    assert [row["verb"] for row in rows] == ["add", "add", "restore", "erase", "merge", "remove"]
    assert [row["reason"] for row in rows] == [
        "first",
        "",
        'the artist agreed,\n"in writing"\u2028',
        "Größe",
        "release",
        "",
    ]
    told = [[(edit["concept"], edit["strength"]) for edit in row["edits"]] for row in rows]
    neon, pop = ("neon", 0.25), ("pop art", 0.5)
    assert told == [[("neon", 1.0)], [pop], [("neon", 1.0)], [neon], [neon, pop], [pop, neon]]
    base = described(tiny, list(select(tiny, "*")))
    for row in rows:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["time"]) and row["versions"]["torch"]
        assert (row["base"], row["fingerprint"]) == (tiny.name, base["fingerprint"])
        assert all(edit["sha256"] == hashes[edit["concept"]] for edit in row["edits"])
    merged = (tmp_path / "unet.safetensors").read_bytes()
    assert (rows[4]["format"], rows[4]["out"]) == ("unet", str(tmp_path / "unet.safetensors"))
    assert rows[4]["sha256"] == hashlib.sha256(merged).hexdigest()


@pytest.mark.parametrize(
    "form", ["diffusers", "unet", "kohya", *(pytest.param(f, marks=pytest.mark.slow) for f in ("pt", "compvis"))]
)
def test_a_merge_is_reproducible(form: str, tiny: DiffusionModel, tmp_path: Path) -> None:
    """Of any subset, in a fresh bank too; safetensors and pickled files have parts whose order or name is random by
    default."""
    rank = 2 if form == "kohya" else 0
    places = []
    for name in "first", "second":
        folder = BankFolder(tmp_path / name / "bank")
        folder.add(tiny, shift_of(tiny, "neon", rank=rank), strength=0.7)
        folder.add(
            tiny, shift_of(tiny, "pop art", seed=1, rank=rank), shift_of(tiny, "star", seed=2, rank=rank), strength=0.3
        )
        folder.restore("star")
        only = ["star", "neon"] if name == "first" else ["neon", "star"]
        ending = {"diffusers": "", "pt": ".pt"}.get(form, ".safetensors")
        kind = "unet" if form == "pt" else form
        places.append(tmp_path / name / f"merged{ending}")
        row = folder.merge(tiny, places[-1], kind, only=only)
        assert [edit["concept"] for edit in row["edits"]] == ["neon", "star"]
        assert row == folder.history()[-1] and row["sha256"] == sha256(places[-1])
        folder.merge(tiny, tmp_path / name / f"all{ending}", kind)
        assert sha256(tmp_path / name / f"all{ending}") != row["sha256"], "another subset is another model"
    one, two = ({"": path.read_bytes()} if path.is_file() else files(path) for path in places)
    assert one == two


def test_a_merge_in_another_process_gives_the_same_bytes(
    bank: BankFolder, tiny: DiffusionModel, tmp_path: Path
) -> None:
    """Metadata goes through a hash table there, whose order differs from process to process and from table to table."""
    entry = bank.read().edits[0]
    again = [tmp_path / f"{k}.safetensors" for k in range(3)]
    code = (
        "import sys; from mu.edits.files import open_edit\nfor path in sys.argv[2:]: open_edit(sys.argv[1]).save(path)"
    )
    subprocess.run([sys.executable, "-c", code, str(bank.folder / entry.file), *map(str, again)], check=True)
    assert {sha256(path) for path in again} == {entry.sha256}


def test_a_merged_file_is_the_model_with_the_edits_on(bank: BankFolder, tiny: DiffusionModel, tmp_path: Path) -> None:
    bank.merge(tiny, tmp_path / "a.safetensors", "unet", only=["pop art"])
    with shift_of(tiny, "pop art", seed=1).applied(tiny, 0.5):
        export(Bank(tiny), tmp_path / "b.safetensors", "unet")
    assert sha256(tmp_path / "a.safetensors") == sha256(tmp_path / "b.safetensors")


@pytest.mark.parametrize("where", ["", "deep/inside"])
def test_a_merge_does_not_replace_the_bank_itself(where: str, tiny: DiffusionModel, tmp_path: Path) -> None:
    """Nor a folder that it lies in, though that holds an older merge."""
    out = tmp_path / "out"
    export(Bank(tiny), out, "diffusers")
    folder = BankFolder(out / where / "bank")
    folder.add(tiny, shift_of(tiny, "neon"))
    before = files(out)
    for path in (out, tmp_path / "out" / "." / "vae" / ".."):
        with pytest.raises(OutputError, match=r"holds .*bank"):
            folder.merge(tiny, path, "diffusers", overwrite=True)
    assert files(out) == before
    folder.merge(tiny, tmp_path / "other", "diffusers")
    folder.merge(tiny, tmp_path / "other", "diffusers", overwrite=True)  # control


def test_a_folder_s_hash_is_what_the_shell_says(tmp_path: Path) -> None:
    (tmp_path / "m" / "unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/a.safetensors", "unet/B.json", "unet.json"):
        (tmp_path / "m" / name).write_text(name)
    if not all(shutil.which(tool) for tool in ("find", "sort", "xargs", "sha256sum")):
        pytest.skip("no coreutils here")
    line = "find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    shell = subprocess.run(["sh", "-c", line], cwd=tmp_path / "m", capture_output=True, text=True, check=True)
    assert shell.stdout.split()[0] == sha256(tmp_path / "m")


def test_what_is_on_is_told_and_changed_without_torch(bank: BankFolder) -> None:
    code = (
        f"import sys; from mu.edits.bank_folder import BankFolder; b = BankFolder({str(bank.folder)!r});"
        "b.restore('neon'); b.erase('neon'); b.history(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- names
# ------------------------------------------------------------------------------------------------------------------


def test_every_concept_gets_a_file_of_its_own_in_the_folder(tiny: DiffusionModel, tmp_path: Path) -> None:
    folder = BankFolder(tmp_path / "bank")
    concepts = (
        "a/b",
        "a b",
        "../../etc/passwd",
        "..",
        "ünï ☃",
        "x" * 300,
        "絵" * 300,
        "log.jsonl",
        "bank.json",
        " ",
    )
    for concept in concepts:
        folder.add(tiny, shift_of(tiny, concept))
    assert [entry.concept for entry in folder.read().edits] == list(concepts) == list(folder.open(tiny).edits)
    names = [entry.file for entry in folder.read().edits]
    assert sorted([*names, "bank.json", "log.jsonl"]) == sorted(os.listdir(folder.folder))
    assert names[:4] == ["a-b.safetensors", "a-b-2.safetensors", "etc-passwd.safetensors", "edit.safetensors"]
    assert os.listdir(tmp_path) == ["bank"]
    before = files(folder.folder)
    for concept in ("con\x00cept", "\x1b[31mred", "half \ud83d"):
        with pytest.raises(EditError, match="cannot list it"):
            folder.add(tiny, shift_of(tiny, concept))
    assert files(folder.folder) == before


def test_a_second_process_is_refused_in_one_line_and_changes_nothing(bank: BankFolder, tiny: DiffusionModel) -> None:
    before = files(bank.folder)
    code = (
        "import sys, time; from mu.core.lock import locked\n"
        f"with locked({str(bank.folder)!r}): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        (bank.folder / ".partial-neon-abcdefgh.safetensors").write_bytes(b"of the other process")
        calls: list[Callable[[], object]] = [
            lambda: bank.add(tiny, shift_of(tiny, "fish")),
            lambda: bank.restore("neon"),
            lambda: bank.erase("neon", strength=0.5),
            lambda: bank.remove("neon"),
            lambda: bank.merge(tiny, bank.folder.parent / "x.safetensors", "unet"),
        ]
        for call in calls:
            with pytest.raises(OutputError, match="another process is working in") as caught:
                call()
            assert str(bank.folder) in str(caught.value)
        assert bank.read().entry("neon").on, "reading needs no lock"
        assert (bank.folder / ".partial-neon-abcdefgh.safetensors").exists()
        other.kill()
    bank.restore("neon")  # control: a killed process holds nothing, and what it left is gone
    assert files(bank.folder).keys() == before.keys()


def test_a_file_that_the_bank_does_not_list_is_kept(bank: BankFolder, tiny: DiffusionModel) -> None:
    """As one that an interrupted add left, or that somebody put there."""
    (bank.folder / "star.safetensors").write_bytes(b"mine")
    (entry,) = bank.add(tiny, shift_of(tiny, "star"))
    assert entry.file == "star-2.safetensors" and (bank.folder / "star.safetensors").read_bytes() == b"mine"


# -- interrupted
# --------------------------------------------------------------------------------------------------------------


def test_edits_are_exchanged_in_their_places(bank: BankFolder, tiny: DiffusionModel) -> None:
    bank.restore("pop art")
    neon, pop = (shift_of(tiny, name, seed=7) for name in ("neon", "pop art"))
    bank.add(tiny, shift_of(tiny, "star"), instead=[pop, neon], reason="star joins")
    assert [(e.concept, e.on, e.strength) for e in bank.read().edits] == [
        ("neon", True, 1.0),
        ("pop art", False, 0.5),
        ("star", True, 1.0),
    ]
    opened = bank.open(tiny).edits
    for wanted in (neon, pop):
        found = opened[wanted.concept()].tensors()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.tensors().items())
    assert sorted(files(bank.folder)) == [
        "bank.json",
        "log.jsonl",
        "neon-2.safetensors",
        "pop-art-2.safetensors",
        "star.safetensors",
    ]
    replaced, added = bank.history()[-2:]
    assert (replaced["verb"], [e["concept"] for e in replaced["edits"]], added["verb"]) == (
        "replace",
        ["pop art", "neon"],
        "add",
    )
    assert {e["sha256"] for e in replaced["edits"]} == {e.sha256 for e in bank.read().edits[:2]}
    kept = files(bank.folder)
    with pytest.raises(EditError, match="'house'"):
        bank.add(tiny, shift_of(tiny, "fish"), instead=[shift_of(tiny, "house")])
    assert files(bank.folder) == kept


def test_cut_off_while_edits_are_exchanged_the_bank_is_the_old_one(
    bank: BankFolder, tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, out = bank.read(), output(bank, tiny)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mu.edits.bank_folder.write_json", killed)
        bank.add(tiny, shift_of(tiny, "star"), instead=[shift_of(tiny, "neon", seed=7)])
    assert bank.read() == before and torch.equal(output(bank, tiny), out)
    bank.add(tiny, shift_of(tiny, "star"), instead=[shift_of(tiny, "neon", seed=7)])
    assert not torch.equal(output(bank, tiny), out)


def test_what_a_promise_does_not_hold_is_told_when_it_is_added(
    tiny: DiffusionModel, scene: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``a`` promises nothing; two that promise, each without the other, are told, once for each direction."""
    folder = BankFolder(tmp_path / "bank")
    folder.add(tiny, scene[0])
    folder.add(tiny, scene[1])
    assert not caplog.records
    folder.add(tiny, shift_of(tiny, "fish", ("",), seed=4))
    told = [(leak.edit, leak.on) for record in caplog.records for leak in record.args]
    assert told.count(("fish", "red house")) == told.count(("red house", "fish")) == 1
    assert "neon star" not in dict(told)


@contextmanager
def other_weights(model: DiffusionModel, name: str = "unet.conv_out.bias") -> Iterator[None]:
    """Another base inside the block; no edit here shifts the bias."""
    with torch.no_grad():
        parameter = find_parameter(model, name)
        kept = parameter.clone()
        parameter.add_(1)
        try:
            yield
        finally:
            parameter.copy_(kept)


def test_other_weights_are_refused_unless_they_are_asked_for(
    bank: BankFolder, tiny: DiffusionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, star = tmp_path / "unet.safetensors", shift_of(tiny, "star")
    bank.require(tiny)
    kept = files(bank.folder)
    with other_weights(tiny):
        for refused in (
            lambda: bank.require(tiny),
            lambda: bank.add(tiny, star),
            lambda: bank.merge(tiny, out, "unet"),
        ):
            with pytest.raises(EditError, match="--model"):
                refused()
        assert files(bank.folder) == kept and not out.exists() and not caplog.records
        bank.add(tiny, star, transfer=True)
        bank.merge(tiny, out, "unet", transfer=True)
    assert str(bank.folder) in caplog.text and out.exists()
    assert list(bank.open(tiny).edits) == ["neon", "pop art", "star"]


def test_an_edit_of_other_weights_is_refused_unless_it_is_asked_for(
    bank: BankFolder, tiny: DiffusionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is the bank's own; the edit tells that it was found on another, one made elsewhere tells nothing."""
    with other_weights(tiny, next(iter(select(tiny, KEYS)))):
        foreign = shift_of(tiny, "star")
    kept = files(bank.folder)
    for folder in (bank, BankFolder(tmp_path / "new")):
        with pytest.raises(EditError, match=r"'star'.*--transfer"):
            folder.add(tiny, foreign)
    assert files(bank.folder) == kept and not (tmp_path / "new").exists()
    bank.add(tiny, foreign, transfer=True)
    assert "'star'" in caplog.text
    bank.add(tiny, WeightEdit(foreign.shifts, EditInfo("kohya", ("moon",))))
    assert list(bank.open(tiny).edits) == ["neon", "pop art", "star", "moon"]


def test_a_file_that_cannot_be_written_leaves_all_as_it_was(
    bank: BankFolder, tiny: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of several edits is added where the last one fails, also where they were to make the bank."""
    edits, keep = [shift_of(tiny, name, seed=7) for name in ("star", "moon", "neon")], BankFolder._keep

    def full(self: BankFolder, edit: Any, *more: Any) -> Any:
        if edit.concept() == "moon":
            raise OSError(28, "No space left on device")
        return keep(self, edit, *more)

    kept, new = files(tmp_path), BankFolder(tmp_path / "new")
    with monkeypatch.context() as patch:
        patch.setattr(BankFolder, "_keep", full)
        with pytest.raises(OutputError):
            bank.add(tiny, *edits[:2], instead=edits[2:])
        with pytest.raises(OutputError):
            new.add(tiny, *edits[:2])
    assert files(tmp_path) == kept
    new.add(tiny, *edits[:2])  # control, and the folder is free
    assert sorted(files(new.folder)) == ["bank.json", "log.jsonl", "moon.safetensors", "star.safetensors"]


def test_a_merge_tells_what_does_not_spare_what(
    tiny: DiffusionModel, scene: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of what goes in. ``red house`` spares ``neon star``; ``moon`` and ``red house`` promise something, and not each
    other."""
    folder = BankFolder(tmp_path / "bank")
    folder.add(tiny, scene[1], shift_of(tiny, "moon", ("", "neon star"), seed=4))
    folder.add(tiny, shift_of(tiny, "neon star", ("", "red house"), seed=3))

    def told(*only: str) -> set[str]:
        caplog.clear()
        folder.merge(tiny, tmp_path / "unet.safetensors", "unet", only=only or None, overwrite=True)
        return {f"{leak.edit} on {leak.on}" for record in caplog.records for leak in record.args}

    assert told("red house", "neon star") == set()  # control
    assert told("red house", "moon") == {"red house on moon", "moon on red house"}
    assert told("neon star", "moon") == {"neon star on moon"}
    folder.restore("moon")
    assert told() == set()


@pytest.mark.parametrize("verb", ["add", "remove", "restore", "erase"])
def test_cut_off_before_bank_json_the_bank_is_the_old_one(
    verb: str, bank: BankFolder, tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.restore("pop art")
    before, change = bank.read(), {"add": (tiny, shift_of(tiny, "star")), "erase": ("pop art",)}.get(verb, ("neon",))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mu.edits.bank_folder.write_json", killed)
        getattr(bank, verb)(*change)
    assert bank.read() == before and bank.open(tiny).edits.keys() == {"neon", "pop art"}
    assert bank.history()[-1]["verb"] == verb, "the log never misses a change"
    getattr(bank, verb)(*change)  # and nothing stands in the way of the next try
    assert bank.read() != before
    bank.open(tiny)


def test_a_full_disk_is_one_clear_error_and_changes_nothing(bank: BankFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = files(bank.folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        bank.remove("neon")
    now = files(bank.folder)
    assert {n: c for n, c in now.items() if n != "log.jsonl"} == {n: c for n, c in kept.items() if n != "log.jsonl"}


def test_half_a_line_of_the_log_is_told_and_left_out(bank: BankFolder, caplog: pytest.LogCaptureFixture) -> None:
    with bank.log.open("a", encoding="utf-8") as lines:
        lines.write('{"time": "2026-')
    bank.restore("neon")
    with caplog.at_level(logging.WARNING, "mu"):
        assert [row["verb"] for row in bank.history()] == ["add", "add", "restore"]
    assert str(bank.log) in caplog.text and " 3" in caplog.text


def test_several_changes_are_made_together_or_not_at_all(bank: BankFolder, tiny: DiffusionModel) -> None:
    kept = files(bank.folder)
    star, neon = shift_of(tiny, "star"), shift_of(tiny, "neon", seed=4)
    for change in (
        lambda: bank.restore("neon", "pop"),
        lambda: bank.remove("neon", "pop"),
        lambda: bank.add(tiny, star, neon),
        lambda: bank.add(tiny, star, shift_of(tiny, "star")),
        lambda: bank.add(tiny, star, strength=float("nan")),
        lambda: bank.erase("neon", strength=float("inf")),
    ):
        with pytest.raises(EditError):
            change()
        assert files(bank.folder) == kept


# -- bad folders
# --------------------------------------------------------------------------------------------------------------


def entry(**change: Any) -> str:
    good = {"concept": "a", "file": "neon.safetensors", "sha256": "0", "on": True, "strength": 1.0}
    return json.dumps({"format": 1, "base": "tiny", "fingerprint": "0 0", "edits": [{**good, **change}]})


ESCAPES = (
    "../x",
    "../x.safetensors",
    "/etc/x.safetensors",
    "a/../../x.safetensors",
    "..",
    "",
    ".x.safetensors",
    "a\\x.safetensors",
    "C:x.safetensors",
    "x.pt",
    "x.safetensors\n",
    "~/x.safetensors",
    "x\x00.safetensors",
)
DAMAGED = {
    "empty": "",
    "half": entry()[:60],
    "not JSON": "edits: []",
    "a list": "[]",
    "a number": "1",
    "no base": '{"edits": []}',
    "unknown key": entry(secret=1),
    "strength as word": entry(strength="much"),
    "strength nan": entry(strength=float("nan")),
    "edits as text": '{"base": "", "fingerprint": "", "edits": "x"}',
    "deep": "[" * 10**5,
    "concept as list": entry(concept=[]),
    "on as word": entry(on="perhaps"),
    "a newer format": '{"format": 99}',
    "format as word": '{"format": "x"}',
    "twice": entry().replace("[{", '[{"concept": "a", "file": "b.safetensors", "sha256": "0"}, {'),
    "one file for two": entry().replace("[{", '[{"concept": "b", "file": "neon.safetensors", "sha256": "0"}, {'),
    **{f"file {name!r}": entry(file=name) for name in ESCAPES},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_bank_json_is_one_clear_error(name: str, bank: BankFolder, tiny: DiffusionModel) -> None:
    bank.json.write_text(DAMAGED[name], encoding="utf-8")
    kept = files(bank.folder.parent)
    for read in (
        bank.read,
        lambda: bank.open(tiny),
        lambda: bank.remove("a"),
        lambda: bank.add(tiny, shift_of(tiny, "b")),
    ):
        with pytest.raises(EditError) as caught:
            read()
        assert "\n" not in str(caught.value) and "bank.json" in str(caught.value)
    assert files(bank.folder.parent) == kept


def test_control_the_good_bank_json_is_read(bank: BankFolder) -> None:
    bank.json.write_text(entry(), encoding="utf-8")
    assert bank.read().edits[0].file == "neon.safetensors"
    bank.json.write_bytes(b"\xff\xfe{}")
    with pytest.raises(EditError, match=r"bank\.json"):
        bank.read()


def test_an_edit_s_file_must_be_the_one_that_was_added(bank: BankFolder, tiny: DiffusionModel, tmp_path: Path) -> None:
    path = bank.folder / "neon.safetensors"
    good = path.read_bytes()

    def refused(says: str) -> None:
        with pytest.raises(EditError, match=says) as caught:
            bank.open(tiny)
        assert "\n" not in str(caught.value)

    path.write_bytes(good[:-1])
    refused("SHA-256")
    path.write_bytes((bank.folder / "pop-art.safetensors").read_bytes())
    refused("SHA-256")
    path.unlink()
    refused(r"neon\.safetensors")
    path.mkdir()
    refused(r"neon\.safetensors")
    path.rmdir()
    (tmp_path / "outside.safetensors").write_bytes(good)
    path.symlink_to(tmp_path / "outside.safetensors")
    refused("link")
    bank.remove("neon")  # what is missing or wrong can be taken out
    assert (tmp_path / "outside.safetensors").read_bytes() == good and not path.is_symlink()
    assert bank.open(tiny).edits.keys() == {"pop art"}


def test_a_name_in_bank_json_must_be_the_edit_s_own(bank: BankFolder, tiny: DiffusionModel) -> None:
    bank.json.write_text(bank.json.read_text(encoding="utf-8").replace('"neon"', '"star"'), encoding="utf-8")
    with pytest.raises(EditError, match=r"(?=.*bank\.json)(?=.*'neon').*'star'"):
        bank.open(tiny)


def test_a_folder_that_is_no_bank_is_left_alone(tiny: DiffusionModel, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        with pytest.raises(EditError, match=rf"{name}.*bank\.json"):
            BankFolder(tmp_path / name).add(tiny, shift_of(tiny, "neon"))
        with pytest.raises(MuError, match=r"bank\.json"):
            BankFolder(tmp_path / name).read()
    assert files(tmp_path) == {"file": b"mine", "mine/notes.txt": b"mine"}
    with pytest.raises(EditError, match=r"none.*bank\.json"):
        BankFolder(tmp_path / "none").restore("neon")
    assert not (tmp_path / "none").exists()


def test_an_edit_that_does_not_fit_makes_no_bank(tiny: DiffusionModel, tmp_path: Path) -> None:
    other = WeightEdit({"unet.conv_in.weight": torch.zeros(3, 3)}, EditInfo("test", ("x",)))
    with pytest.raises(EditError, match=r"unet\.conv_in\.weight"):
        BankFolder(tmp_path / "bank").add(tiny, other)
    assert not (tmp_path / "bank").exists()


def test_a_merge_does_not_write_into_the_bank(bank: BankFolder, tiny: DiffusionModel) -> None:
    kept = files(bank.folder)
    for name in ("neon.safetensors", "below/unet.safetensors", "../bank/x.safetensors"):
        with pytest.raises(OutputError, match=name):
            bank.merge(tiny, bank.folder / name, "unet", overwrite=True)
    with pytest.raises(EditError, match="'neon'"):
        bank.merge(tiny, bank.folder.parent / "x.safetensors", "unet", only=["neom"])
    assert files(bank.folder) == kept and os.listdir(bank.folder.parent) == ["bank"]


def test_other_weights_are_told(bank: BankFolder, tiny: DiffusionModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mu"):
        bank.open(tiny)
        assert caplog.text == ""  # control
        bias = tiny.unet.conv_out.bias  # which no edit of the bank touches
        kept = bias.detach().clone()
        with torch.no_grad():
            bias.add_(1)
            bank.open(tiny)
            bias.copy_(kept)
    assert str(bank.folder) in caplog.text


# -- what protects what
# -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tiny: DiffusionModel) -> Iterator[list[Any]]:
    """``a`` was found first; ``b`` was kept off ``a``; ``c`` changes something else too."""
    a, b = shift_of(tiny, "neon star"), shift_of(tiny, "red house", ("", "neon star"), seed=1)
    yield [a, b, shift_of(tiny, "fish", ("neon star",), seed=2, extra="unet.conv_out.bias")]


def found(bank: Bank, **options: Any) -> dict[tuple[str, str], Leak]:
    return {(leak.edit, leak.on): leak for leak in leaks(bank, **options)}


def test_shares_are_those_of_the_definition(tiny: DiffusionModel, scene: list[Any]) -> None:
    measured = found(Bank(tiny, scene[:2]))
    texts = {"neon star": embedding(tiny, "neon star"), "red house": embedding(tiny, "red house")}
    for edit in scene[:2]:
        other = next(name for name in texts if name != edit.concept())
        norm = {
            name: sum(float(((e @ shift.double().T) ** 2).sum()) for shift in edit.shifts.values()) ** 0.5
            for name, e in texts.items()
        }
        assert measured[edit.concept(), other].share == pytest.approx(
            norm[other] / norm[edit.concept()], rel=1e-6, abs=1e-9
        )
    assert measured["red house", "neon star"].share < 1e-4 < 0.1 < measured["neon star", "red house"].share  # type: ignore[operator]


def test_one_sided_protection_is_found_and_true(tiny: DiffusionModel, scene: list[Any]) -> None:
    """What it says of restoring: b's edit leaves a's prompt as it is up to rounding, a's does not leave b's."""
    a, b, _ = scene
    measured = found(Bank(tiny, [a, b]))
    there, back = measured["red house", "neon star"], measured["neon star", "red house"]
    assert (there.verdict, there.leaking, there.listed) == ("spared", False, True)
    assert (back.verdict, back.leaking, back.listed) == ("one-sided", True, False)
    assert all(repr(name) in str(back) for name in ("neon star", "red house"))
    for prompt, alone, restored in (("neon star", a, b), ("red house", b, a)):
        with alone.applied(tiny):
            wanted = noise(tiny, prompt)
        with Bank(tiny, [alone, restored]).applied():
            changed = float((noise(tiny, prompt) - wanted).abs().max())
        assert (changed < 1e-5) is (prompt == "neon star") and (changed > 1e-3) is (prompt == "red house")


def test_verdicts_of_both_directions(tiny: DiffusionModel, scene: list[Any]) -> None:
    a, b, c = scene
    spared = shift_of(tiny, "neon star", ("", "red house"), seed=3)
    assert {leak.verdict for leak in leaks(Bank(tiny, [spared, b]))} == {"spared"}
    assert {leak.verdict for leak in leaks(Bank(tiny, [a, shift_of(tiny, "red house", seed=1)]))} == {"both ways"}
    assert {leak.verdict for leak in leaks(Bank(tiny, [a, b]), tolerance=9.0)} == {"spared"}
    mixed = found(Bank(tiny, [a, c]))
    assert (mixed["fish", "neon star"].verdict, mixed["fish", "neon star"].share) == ("not measurable", None)
    assert mixed["neon star", "fish"].verdict == "other way unknown"
    assert leaks(Bank(tiny, [a])) == leaks(Bank(tiny)) == []


def test_restored_edits_are_measured_and_strength_does_not_count(tiny: DiffusionModel, scene: list[Any]) -> None:
    bank = Bank(tiny)
    for edit in scene[:2]:
        bank.add(edit, 0.3)
    bank.restore("neon star")
    assert leaks(bank) == leaks(Bank(tiny, scene[:2]))


def test_a_low_rank_edit_is_measured_as_its_dense_twin(tiny: DiffusionModel, scene: list[Any]) -> None:
    thin = shift_of(tiny, "red house", seed=1, rank=4)
    twin = WeightEdit(dict(thin.deltas()), thin.info)
    mine, theirs = (found(Bank(tiny, [scene[0], edit]))["red house", "neon star"].share for edit in (thin, twin))
    assert mine == pytest.approx(theirs, rel=1e-6) and theirs


def test_an_edit_of_several_concepts_counts_by_the_one_it_reaches_most(tiny: DiffusionModel, scene: list[Any]) -> None:
    both = shift_of(tiny, "x", ("fish",), seed=4)
    both.info = EditInfo("test", ("fish", "red house"))
    with_a = found(Bank(tiny, [scene[0], both]))
    alone = shift_of(tiny, "red house", ("fish",), seed=4)
    assert with_a["fish, red house", "neon star"].share == pytest.approx(
        found(Bank(tiny, [scene[0], alone]))["red house", "neon star"].share
    )
    assert with_a["neon star", "fish, red house"].leaking


def test_an_edit_that_does_nothing_to_its_own_prompt_is_not_measurable(tiny: DiffusionModel, scene: list[Any]) -> None:
    nothing = WeightEdit(
        {name: torch.zeros_like(shift) for name, shift in scene[0].shifts.items()}, EditInfo("test", ("x",))
    )
    assert found(Bank(tiny, [nothing, scene[1]]))["x", "red house"].verdict == "not measurable"


def test_the_folder_checks_what_it_holds(tiny: DiffusionModel, scene: list[Any], tmp_path: Path) -> None:
    folder = BankFolder(tmp_path / "bank")
    folder.add(tiny, *scene)
    assert folder.check(tiny) == leaks(Bank(tiny, [open_edit(folder.folder / e.file) for e in folder.read().edits]))
    assert not any(leak.leaking for leak in folder.check(tiny, tolerance=9.0))


def test_a_concept_is_found_in_any_spelling(tmp_path: Path, tiny: DiffusionModel) -> None:
    """The spelling of the edit stays what is kept and told; a bank of old may hold two spellings, each found by its
    own."""
    folder = BankFolder(tmp_path / "bank")
    folder.add(tiny, shift_of(tiny, "Pop Art"))
    with pytest.raises(EditError, match="'Pop Art' is in the bank"):
        folder.add(tiny, shift_of(tiny, "pop_art", seed=1))
    assert [entry.concept for entry in folder.restore("pop art")] == ["Pop Art"]
    assert not folder.read().edits[0].on
    state = json.loads(folder.json.read_text())
    state["edits"].append({**state["edits"][0], "concept": "pop art", "file": "another.safetensors"})
    folder.json.write_text(json.dumps(state))
    assert [folder.read().entry(each).concept for each in ("Pop Art", "pop art", "POP ART")] == [
        "Pop Art",
        "pop art",
        "Pop Art",
    ]


@pytest.mark.parametrize("reason", ["a\x00b", "\ud800", "\x1b[2J"])
def test_a_reason_that_the_log_cannot_hold_is_refused(tiny, tmp_path, reason):
    bank = BankFolder(tmp_path / "bank")
    still = WeightEdit({"unet.conv_out.bias": torch.zeros(4)}, EditInfo("test", ("star",)))
    with pytest.raises(EditError, match="reason"):
        bank.add(tiny, still, reason=reason)
    assert not bank.folder.exists()
    bank.add(tiny, still, reason="licence of Joan Miró ended")  # control


@pytest.mark.parametrize("verb", ["add", "replace", "remove"])
def test_edits_of_a_killed_process_go_with_the_next_change(
    verb: str, bank: BankFolder, tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the bank lists a new edit, or before an old one is deleted. The user's own files stay."""
    mine = bank.folder / "mine.safetensors"
    mine.write_bytes(b"mine")
    state, before = bank.json.read_bytes(), files(bank.folder)
    unlink = Path.unlink
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # a killed process cleans nothing up
        if verb != "remove":
            patch.setattr("mu.edits.bank_folder.write_json", lambda *_: sys.exit())
            instead = [shift_of(tiny, "neon", seed=5)] if verb == "replace" else []
            bank.add(tiny, shift_of(tiny, "moon"), instead=instead)
        bank.remove("neon")
        sys.exit()
    for path in (bank.folder / ".lock", *bank.folder.glob(".partial-*")):
        unlink(path, missing_ok=True)
    orphans = files(bank.folder).keys() - before.keys() - {".pending.json", "log.jsonl"}
    assert len(orphans) == {"add": 1, "replace": 2, "remove": 0}[verb] and bank.pending.exists(), "control"
    assert (bank.json.read_bytes() == state) == (verb != "remove")
    bank.restore("pop art")
    listed = {entry.file for entry in bank.read().edits}
    assert {path.name for path in bank.folder.glob("*.safetensors")} == {*listed, "mine.safetensors"}
    assert not bank.pending.exists() and mine.read_bytes() == b"mine"
    assert ("neon.safetensors" in listed) == (verb != "remove")


def test_switching_an_edit_whose_file_is_missing_is_told(bank: BankFolder, caplog: pytest.LogCaptureFixture) -> None:
    bank.restore("neon")
    assert "missing" not in caplog.text  # the control
    (bank.folder / next(entry.file for entry in bank.read().edits if entry.concept == "neon")).unlink()
    bank.restore("neon", "neon")
    assert caplog.text.count("is missing: put the file back") == 1
    assert len(bank.history()[-1]["edits"]) == 1
