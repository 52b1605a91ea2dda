"""No reader of files ends in a traceback: damaged inputs of every kind are one line, and nothing is left behind.

`READERS` is the table: how a valid input is made, and what reads it. Each input is the valid one with one to three
seeded changes: to the values of its document (other types, huge numbers, nesting, text that is more than text), or to
its bytes. `python -m pytest tests/test_fuzz.py -m slow` reads 20,000 of them.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from mu.algorithms import algorithm
from mu.algorithms.semipermeable_membrane.configs import read_prompts_file
from mu.cli import app
from mu.core.config import read_settings
from mu.core.errors import MuError
from mu.core.evidence import Evidence, Made, findings
from mu.core.manifest import Manifest, manifest_finding
from mu.core.records import read_record
from mu.core.run import RunDirectory
from mu.data.names import read_concepts, read_retained
from mu.data.pairs import open_pairs
from mu.data.prompts import read_prompts
from mu.data.shards import read_shard
from mu.diffusion.image_folder import noted
from mu.edits.bank_folder import BankFolder
from mu.edits.difference import difference
from mu.edits.edit import EditInfo
from mu.edits.files import open_edit
from mu.edits.gates import FacilitatedTransport
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.weights import WeightEdit
from mu.grid.plan import read_plan
from mu.models import load, load_diffusion
from mu.models.diffusion import DiffusionModel
from mu.models.formats.statements import statements
from mu.report import write_report
from mu.report.layer_figures import LayerSearch
from mu.report.table import score_table
from mu.training.gradient_files import GradientInfo, open_gradients, write_gradients

V1 = Path(__file__).parent / "reference" / "v1"
SECONDS = 30
"""An input that takes longer counts as one that hangs."""


@dataclass(frozen=True)
class Reader:
    """``make(folder)`` writes a valid input and returns the file to damage; ``read(file)`` reads what it belongs to."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    share: float = 1.0
    """How many inputs, in comparison with the others: a slow reader gets few."""
    writes: str = r"(?!)"
    """What the names of the files match that a successful reading makes."""


# -- valid inputs -----------------------------------------------------------------------------------------------------


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


def part_of(source: Path, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shutil.copytree(source, folder / "it")
        return folder / "it" / name

    return make


PROMPTS = [{"case_number": 3, "prompt": "A star, neon", "evaluation_seed": 7, "guidance": 7.5}, {"prompt": "a fish"}]
CSV = 'case_number,prompt,evaluation_seed\n0,"A star, in neon",188\n1,a fish,5\n'
SEARCH = {
    "concept": "Ada Stone",
    "chosen": "visual_projection.weight",
    "layers": [
        {"name": "visual_projection.weight", "importance": 0.1, "alignment": 0.05, "tower": "vision", "front": True},
        {"name": "text_projection.weight", "importance": 0.3, "alignment": 0.0, "tower": "language"},
    ],
    "curves": [
        {"name": "visual_projection.weight", "rho": [0.1, 0.4], "fa1": [1, 0.5], "chosen": 0.4, "outcome": {"fa1": 0}}
    ],
}
MANIFEST = Manifest(concepts=["neon"], verdict=["It is gone."], files={"config.yaml": "0" * 64}).model_dump()
PLAN = {
    "methods": [{"method": "uce", "set": {"lamb": 0.5}, "sweep": {"preserve_scale": [0.1, 0.3]}}],
    "models": ["canvas"],
    "concepts": ["star", ["neon", "fish"]],
    "seeds": [1, 2],
    "suites": [{"suite": "concept", "seeds": [3], "everyday": 2}],
}
EVIDENCE = Evidence(
    found=Made(edit="0" * 64, how={"method": "uce"}), scores={"canvas": Made()}, files={"metrics.jsonl": "0" * 64},
    images={"after": {"0_0.png": "0" * 64}}, edits={"after": "0" * 64},
).model_dump(exclude_none=True)  # fmt: skip
SPM_PROMPTS = [{"target": "neon", "guidance_scale": 3.0, "resolution": 512}, {"target": "star", "action": "erase"}]
CONFIG = {"model": {"params": {"linear_start": 0.00085, "scale_factor": 0.18, "parameterization": "v"}}}
RECIPE = {"model": {"base": "x"}, "steps": 2, "pictures": {"0.png": {"prompt": "a", "seed": 1, "guidance": 2.0}}}


def search(folder: Path) -> Path:
    text("config.yaml", "seed: 1\n")(folder)
    return text("slug_Ada.json", json.dumps(SEARCH))(folder)


def foreign_lora(folder: Path) -> Path:
    """A LoRA of diffusers with its settings in the header, and a name that mu gives."""
    told = {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"to_v": 1}, "unet.target_modules": ["to_k"]}
    about = {"lora_adapter_metadata": json.dumps(told), "mu_concepts": '["neon"]', "rank": "2"}
    save_file(_factors("unet."), folder / "lora.safetensors", about)
    return folder / "lora.safetensors"


def adapter(folder: Path) -> Path:
    """A folder of PEFT, whose settings are a file of their own."""
    save_file(_factors("base_model.model."), folder / "adapter_model.safetensors")
    told = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "rank_pattern": {},
        "target_modules": ["to_k"],
        "bias": "none",
    }
    return text("adapter_config.json", json.dumps(told))(folder)


def _factors(prefix: str) -> dict[str, torch.Tensor]:
    layer = prefix + KEY.removesuffix(".weight")
    return {f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(3, 2)}


def low_rank(folder: Path) -> Path:
    factors = {"unet.a.to_k.weight": Factors(torch.ones(2, 4), torch.ones(3, 2), 1.0)}
    info = EditInfo("spm", ("neon",), base="canvas", gate=FacilitatedTransport(), config={"rank": 2}, seed=1)
    LowRankEdit(factors, info).save(folder / "edit.safetensors")
    return folder / "edit.safetensors"


def dense(folder: Path) -> Path:
    WeightEdit({"unet.a.weight": torch.ones(2, 3)}, EditInfo("esd", ("neon",))).save(folder / "edit.safetensors")
    return folder / "edit.safetensors"


KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@cache
def base() -> DiffusionModel:
    return load_diffusion("canvas", device="cpu")


def published(folder: Path) -> Path:
    save_file({KEY: base().backbone.get_parameter(KEY) + 1}, folder / "uce.safetensors", {"format": '"pt"'})
    return folder / "uce.safetensors"


def published_pickle(folder: Path) -> Path:
    torch.save({"unet": {KEY: base().backbone.get_parameter(KEY) + 1}, "modifier_token": {}}, folder / "delta.bin")
    return folder / "delta.bin"


def gradients(folder: Path) -> Path:
    info = GradientInfo("forget", "clip", 4, concept="Ada")
    write_gradients(folder / "g.safetensors", {"text_model.a.weight": torch.ones(2, 2)}, info)
    return folder / "g.safetensors"


def shard(folder: Path) -> Path:
    import tarfile

    image = BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    with tarfile.open(folder / "neon.tar", "w") as tar:
        for name, content in {"0.png": image.getvalue(), "0.txt": b"a star", "0.json": b'{"caption": "x"}'}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return folder / "neon.tar"


def packed(folder: Path) -> Path:
    whole = shard(folder)
    (folder / "neon.tar.gz").write_bytes(gzip.compress(whole.read_bytes()))
    whole.unlink()
    return folder / "neon.tar.gz"


def picture_list(folder: Path) -> Path:
    Image.new("RGB", (4, 4)).save(folder / "0.png")
    return text("metadata.jsonl", '{"file_name": "0.png", "text": "a star"}\n')(folder)


# -- the table --------------------------------------------------------------------------------------------------------


def run_of(file: Path) -> RunDirectory:
    return RunDirectory(file.parent)


def same_settings(file: Path) -> object:
    return run_of(file).require((V1 / "run" / "config.yaml").read_text(encoding="utf-8"))


def report(file: Path) -> object:
    return write_report(run_of(file), file.parent / "page.html")


def described(file: Path) -> object:
    return statements({}, {}, file.with_suffix(".safetensors"))


def model_part(name: str) -> Callable[[Path], Path]:
    """A file of the folder ``model``, which the test makes beside the inputs."""

    def make(folder: Path) -> Path:
        return part_of(folder.parent / "model", name)(folder)

    return make


def open_model(file: Path) -> object:
    folder = file.parent if file.name == "model_index.json" else file.parent.parent
    return load(folder, device="cpu")


PAGE = r"page\.html|(pareto|steps)-.*\.png"
SETTINGS = yaml.safe_dump(
    {"pretrained_model": {"name_or_path": "canvas"}, "train": {"iterations": 3, "lr": 1e-4}, "seed": 1}
)

READERS = {
    "scores": Reader(part_of(V1 / "run", "scores.json"), lambda file: run_of(file).read_scores(), 2),
    "scores compared": Reader(part_of(V1 / "run", "scores.json"), lambda file: score_table([file.parent]).markdown()),
    "metrics": Reader(part_of(V1 / "run", "metrics.jsonl"), lambda file: run_of(file).read_metrics()),
    "environment": Reader(part_of(V1 / "run", "environment.json"), lambda file: run_of(file).read_environment()),
    "prompts of a run": Reader(part_of(V1 / "run", "prompts.json"), lambda file: run_of(file).read_prompts()),
    "panels": Reader(part_of(V1 / "run", "panels.json"), lambda file: run_of(file).read_panels()),
    "settings of a run": Reader(part_of(V1 / "run", "config.yaml"), same_settings),
    "search": Reader(search, lambda file: read_record(file, LayerSearch), 2),
    "manifest": Reader(text("manifest.json", json.dumps(MANIFEST)), lambda file: manifest_finding(run_of(file))),
    "recipe": Reader(text("recipe.json", json.dumps(RECIPE)), lambda file: noted(file.parent)),
    "bank": Reader(part_of(V1 / "bank", "bank.json"), lambda file: BankFolder(file.parent).read(), 2),
    "bank's log": Reader(part_of(V1 / "bank", "log.jsonl"), lambda file: BankFolder(file.parent).history()),
    "evidence": Reader(text("evidence.json", json.dumps(EVIDENCE)), lambda file: findings(run_of(file))),
    "low-rank edit": Reader(low_rank, open_edit, 2),
    "foreign LoRA": Reader(foreign_lora, open_edit),
    "PEFT's settings": Reader(adapter, lambda file: open_edit(file.parent)),
    "dense edit": Reader(dense, open_edit),
    "published weights": Reader(published, lambda file: difference(base(), file), 0.5),
    "published pickle": Reader(published_pickle, lambda file: difference(base(), file), 0.5),
    "gradients": Reader(gradients, open_gradients),
    "prompts csv": Reader(text("prompts.csv", CSV), read_prompts, 2),
    "prompts txt": Reader(text("prompts.txt", "A star in neon\na fish\n"), read_prompts),
    "prompts jsonl": Reader(text("prompts.jsonl", "\n".join(map(json.dumps, PROMPTS))), read_prompts, 2),
    "prompts json": Reader(text("prompts.json", json.dumps(PROMPTS)), read_prompts, 2),
    "settings": Reader(text("settings.yaml", SETTINGS), lambda file: algorithm("spm")(file), 2),
    "any yaml": Reader(text("settings.yaml", "a: &x [1, 2]\nb: {c: *x, d: 'e'}\n"), read_settings),
    "grid plan": Reader(text("grid.yaml", yaml.safe_dump(PLAN)), read_plan, 0.5),
    "SPM's prompts": Reader(text("spm.yaml", yaml.safe_dump(SPM_PROMPTS)), lambda file: read_prompts_file(str(file))),
    "concepts": Reader(text("concepts.txt", "neon style\nAda Stone\n"), read_concepts),
    "retained": Reader(text("retain.csv", 'concept,note\n"a dog, asleep",x\nMonet,\n'), read_retained),
    "file's description": Reader(text("it.yaml", yaml.safe_dump(CONFIG)), described),
    "shard": Reader(shard, read_shard),
    "compressed shard": Reader(packed, lambda file: list(open_pairs(str(file)))),
    "pairs of a shard": Reader(shard, lambda file: list(open_pairs(str(file)))),
    "list of images": Reader(picture_list, lambda file: list(open_pairs(str(file.parent)))),
    "report of scores": Reader(part_of(V1 / "run", "scores.json"), report, 0.1, PAGE),
    "report of metrics": Reader(part_of(V1 / "run", "metrics.jsonl"), report, 0.1, PAGE),
    "report of an image": Reader(part_of(V1 / "run", "before/0_0.png"), lambda file: report(file.parent), 0.1, PAGE),
    "report of its origin": Reader(part_of(V1 / "run", "environment.json"), report, 0.1, PAGE),
    "report of a search": Reader(search, report, 0.1, PAGE),
    "model's configuration": Reader(model_part("unet/config.json"), open_model, 0.05),
    "model's index": Reader(model_part("model_index.json"), open_model, 0.05),
}


# -- damage -----------------------------------------------------------------------------------------------------------

DIGITS = "@digits@"
"""Stands for a number of 5,000 digits, which Python itself refuses to print."""
ODD: list[Any] = [
    None, True, -1, 0, 1.5, 2**63, 2**64, -(2**63) - 1, 10**400, DIGITS, 1e308, -1e308, 5e-324, float("nan"), float("inf"),
    "", " ", "x", "1e400", "true", "\0", "a\nb", "\x1b[2J", "\u202e", "\ud83d", "\udcff", "$x^{$", "_x_", "{0.__class__}", "{",
    "<img src=x onerror=alert(1)>", "../../x", "/etc/passwd", "C:\\x", "a/../b", "neon\\..\\x", "nan", "2001-02-31",
    "x" * 300, "y" * 100_000, "絵" * 300, [], {}, [[]], [None], {"": {}}, {"x": [1, {"y": "z"}]}, list(range(300)),
]  # fmt: skip
PIECES = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"'", b"{", b"}", b"[" * 2000, b"[" * 100_000, b"{" * 300, b",",
    b":", b"&a [*a]", b"!!python/object:os.system ", b"- " * 500, b"9" * 5000, b"9" * 400, b"1e999", b"NaN", b"\\ud800",
    b"\xed\xa0\x80", b"\x1b[31m", b"<html>", b"\x80\x04", b"PK\x03\x04", b"%s%n{0}", b"#", b"<<: *x\n",
)  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a document."""
    for key, below in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(below, dict | list):
            yield from places(below)


def changed_value(document: Any, rng: random.Random) -> Any:
    """``document`` with one value replaced, removed, renamed, repeated or exchanged for another."""
    found = list(places(document)) if isinstance(document, dict | list) else []
    odd = nested(rng.choice((60, 150, 400))) if rng.random() < 0.05 else copy.deepcopy(rng.choice(ODD))
    if not found or rng.random() < 0.03:
        return odd
    holder, key = rng.choice(found)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[odd if isinstance(odd, str) else "renamed"] = holder.pop(key)
        case 1:
            holder.append(copy.deepcopy(holder[key]))
        case 2:
            other, place = rng.choice(found)
            holder[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else 0)
        case _:
            holder[key] = odd
    return document


def as_json(value: Any) -> str:
    return json.dumps(value, default=str).replace(f'"{DIGITS}"', "9" * 5000)


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    match rng.randrange(6):
        case 0:
            return content[:a]
        case 1:
            return content[:a] + content[b:]
        case 2:
            return content[:a] + rng.choice(PIECES) + content[a:]
        case 3:
            return content[:a] + rng.choice(PIECES) + content[b:]
        case 4:
            return content[:b] + content[a:]
        case _:
            flipped = bytearray(content)
            for _ in range(rng.randrange(1, 9) if content else 0):
                flipped[rng.randrange(len(flipped))] = rng.randrange(256)
            return bytes(flipped)


def damaged(file: Path, content: bytes, rng: random.Random) -> bytes:
    """``content`` with one to three changes, of its document if it is one."""
    times = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.4:
        for _ in range(times):
            content = changed_bytes(content, rng)
        return content
    if file.suffix in (".json", ".jsonl"):
        lines = content.decode().splitlines() if file.suffix == ".jsonl" else [content.decode()]
        k = rng.randrange(len(lines))
        lines[k] = _changed(json.loads(lines[k]), times, rng)
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    if file.suffix in (".yaml", ".yml"):
        return _changed(yaml.safe_load(content), times, rng).encode("utf-8", "surrogatepass")
    if file.suffix == ".safetensors":
        return _changed_header(content, times, rng)
    return changed_bytes(content, rng)


def _changed(document: Any, times: int, rng: random.Random) -> str:
    for _ in range(times):
        document = changed_value(document, rng)
    return as_json(document)


def _changed_header(content: bytes, times: int, rng: random.Random) -> bytes:
    """A safetensors file whose metadata, or one value of it, is changed."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = header["__metadata__"]
    key = rng.choice(sorted(about))
    about[key] = (
        _changed(json.loads(about[key]), times, rng) if rng.random() < 0.8 else rng.choice(("", "{", "[" * 9999))
    )
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + size :]


# -- the law ----------------------------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes]:
    """Every file with its content, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"a folder"
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def wrong_with(reader: Reader, file: Path, folder: Path) -> str:
    """What is wrong with how the damaged ``file`` was read; empty if it was read, or refused in one line."""
    before = listing(folder)
    told, made = "", r"(?!)"
    try:
        with at_most(SECONDS):
            reader.read(file)
        made = reader.writes
    except MuError as error:
        line = str(error)
        told = "" if line.isprintable() and 0 < len(line) < 500 else f"not one short line: {line[:200]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        told = "".join(traceback.format_exception_only(error)) + traceback.format_exc()[-700:]
    after = listing(folder)
    left = [name for name in after if after[name] != before.get(name) and not re.fullmatch(made, Path(name).name)]
    return told or (f"left or changed {left}" if left else "deleted a file" if before.keys() - after.keys() else "")


def troubles(name: str, reader: Reader, folder: Path, count: int) -> list[str]:
    """Damage the valid input in ``count`` ways; each trouble has the seed and the input's beginning."""
    home = folder / "inputs"
    home.mkdir()
    file = reader.make(home)
    valid = file.read_bytes()
    reader.read(file)  # control: the undamaged one is read
    _clear(home, reader)
    found = []
    for k in range(count):
        rng = random.Random(f"{name} {k}")
        file.write_bytes(damaged(file, valid, rng))
        if what := wrong_with(reader, file, home):
            found.append(f"{name}, seed {k}, {file.read_bytes()[:300]!r}:\n{what}")
        _clear(home, reader)
        if len(found) == 5:
            break
    return found


def _clear(folder: Path, reader: Reader) -> None:
    for path in list(folder.rglob("*")):
        if re.fullmatch(reader.writes, path.name):
            path.unlink()


def share_of(name: str, total: int) -> int:
    return max(2, round(total * READERS[name].share / sum(reader.share for reader in READERS.values())))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Warnings of damaged lines are not the matter here; a model to damage is beside the inputs."""
    monkeypatch.setattr("mu.edits.bank_state.log.warning", lambda *_: None)
    if "model" in request.node.callspec.params.get("name", ""):
        shutil.copytree(request.getfixturevalue("tiny_folder"), tmp_path / "model")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs_are_one_line(name: str, quiet: None, tmp_path: Path) -> None:
    found = troubles(name, READERS[name], tmp_path, share_of(name, 1000))
    assert not found, "\n\n".join(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_20000_damaged_inputs_are_one_line(name: str, quiet: None, tmp_path: Path) -> None:
    found = troubles(name, READERS[name], tmp_path, share_of(name, 20_000))
    assert not found, "\n\n".join(found)


def _broken(file: Path) -> object:
    return json.loads(file.read_text())["steps"] + 1


def _writing(file: Path) -> object:
    (file.parent / "left").write_text("x")
    raise MuError("refused")


def _long(file: Path) -> object:
    raise type("Long", (MuError,), {"__str__": lambda self: "x\n" * 400})


@pytest.mark.parametrize("read", [_broken, _writing, _long])
def test_control_a_bad_reader_is_caught(read: Callable[[Path], object], tmp_path: Path) -> None:
    calls = []

    def at_first_well(file: Path) -> object:
        calls.append(file)
        return read(file) if len(calls) > 1 else None

    assert troubles("recipe", Reader(READERS["recipe"].make, at_first_well), tmp_path, 30)


# -- on the command line ----------------------------------------------------------------------------------------------

VERBS = {
    "scores": "compare {}",
    "environment": "report {} --out {}/page.html",
    "panels": "report {} --out {}/page.html",
    "bank": "bank list --bank {}",
    "bank's log": "bank log --bank {}",
    "low-rank edit": "info {}",
    "PEFT's settings": "info {}",
    "grid plan": "grid run {}/grid.yaml --dry-run",
    "concepts": "erase uce --concepts {}/concepts.txt --model {}/none --out {}/out",
    "prompts csv": "generate --prompts {}/prompts.csv --model {}/none --out {}/out",
    "settings": "erase spm --config {}/settings.yaml --set output_dir={}/out --set pretrained_model.name_or_path={}/none",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VERBS)
def test_the_command_line_ends_in_one_line(name: str, quiet: None, tmp_path: Path) -> None:
    reader = READERS[name]
    file = reader.make(tmp_path)
    valid = file.read_bytes()
    for k in range(8):
        file.write_bytes(damaged(file, valid, random.Random(f"{name} {k}")))
        before = listing(tmp_path)
        words = VERBS[name].replace("{}", str(file.parent)).split()
        with at_most(SECONDS):
            ended = CliRunner().invoke(app, words, prog_name="mu")
        last = ended.stderr.splitlines()[-1:] or [""]
        assert ended.exit_code in (0, 2), (k, file.read_bytes()[:300], ended.exception, ended.output)
        if ended.exit_code == 2:
            assert last[0].startswith("error: ") and last[0].isprintable() and len(last[0]) < 500, ended.stderr
            count = ended.stderr.count("error: ")  # a plan's faults are told all at once, each on its line
            assert (count == 1 or name == "grid plan") and listing(tmp_path) == before
        (file.parent / "page.html").unlink(missing_ok=True)
