"""What was made elsewhere becomes a run folder: edits, banks, and foreign checkpoints, with their evidence."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mu
from mu.cli import app
from mu.cli.evaluate import _withdrawn
from mu.core.errors import BusyError, ConfigError, MuError, OutputError
from mu.core.evidence import CHANGED, findings
from mu.core.lock import locked
from mu.core.run import RunDirectory
from mu.edits.bank_folder import BankFolder
from mu.edits.edit import EditInfo, described
from mu.edits.files import open_edit
from mu.edits.weights import WeightEdit
from mu.evaluation.audit import begin, subject
from mu.evaluation.suites import concept as suite
from mu.evaluation.suites import evaluate
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import select


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return mu.load("canvas", device="cpu")


@pytest.fixture
def files(model: DiffusionModel, tmp_path: Path) -> dict[str, Path]:
    """An edit of each of two concepts, and the second one's whole UNet as a foreign checkpoint."""
    found = {}
    for k, concept in enumerate(("neon", "star")):
        shifts = {n: torch.full_like(p, 0.5 + k) for n, p in select(model, "unet.conv_out.bias").items()}
        edit = WeightEdit(shifts, EditInfo("test", (concept,), **described(model, list(shifts))))
        found[concept] = tmp_path / f"{concept}.safetensors"
        edit.save(found[concept])
    with edit.applied(model):
        found["checkpoint"] = tmp_path / "foreign.pt"
        torch.save(model.components["unet"].state_dict(), found["checkpoint"])
    return found


def test_an_edit_a_bank_and_a_checkpoint_are_measured_as_what_they_are(model, files, tmp_path):
    one = begin(tmp_path / "one", model, edits=[files["neon"]])
    assert [edit.info.concepts for edit in subject(one, model).on] == [("neon",)]
    foreign = begin(tmp_path / "foreign", model, edited=str(files["checkpoint"]), concepts=["a star"])
    (edit,) = subject(foreign, model).on
    truth = dict(open_edit(files["star"]).deltas())
    assert edit.info.concepts == ("a star",)
    assert all(torch.allclose(delta, truth[name], atol=1e-6) for name, delta in edit.deltas())
    bank = BankFolder(tmp_path / "bank")
    bank.add(model, *(open_edit(files[c]) for c in ("neon", "star")), strength=0.5)
    bank.restore("neon")
    whole = begin(tmp_path / "whole", model, edits=[tmp_path / "bank"])
    found = subject(whole, model)
    assert [edit.concept() for edit in found.on] == ["star"] and found.strength == {"neon": 0.5, "star": 0.5}
    both = begin(tmp_path / "both", model, edits=[files["neon"], files["star"]])
    assert len(subject(both, model).on) == 2 and both.origin().concept_names() == ["neon", "star"]
    for run in (one, foreign, whole, both):
        run.require_edit()
        assert not [each for each in findings(run) if each.state == CHANGED]
    BankFolder(both.bank.parent).remove("neon")
    assert "bank.json" in [each.part for each in findings(both) if each.state == CHANGED]


def test_a_folder_is_continued_for_the_same_files_and_refused_for_others(model, files, tmp_path):
    begin(tmp_path / "run", model, edits=[files["neon"]])
    edit = (tmp_path / "run" / "edit.safetensors").stat().st_mtime_ns
    begin(tmp_path / "run", model, edits=[files["neon"]])
    assert (tmp_path / "run" / "edit.safetensors").stat().st_mtime_ns == edit
    with pytest.raises(OutputError, match="different settings"):
        begin(tmp_path / "run", model, edits=[files["star"]])
    files["neon"].write_bytes(files["star"].read_bytes())  # the same name, another edit
    with pytest.raises(OutputError, match="different settings"):
        begin(tmp_path / "run", model, edits=[files["neon"]])
    begin(tmp_path / "run", model, edits=[files["star"]], overwrite=True)
    assert RunDirectory(tmp_path / "run").origin().concept_names() == ["star"]


def test_a_checkpoint_of_the_same_name_and_other_weights_is_another(model, files, tmp_path):
    begin(tmp_path / "run", model, edited=str(files["checkpoint"]), concepts=["star"])
    begin(tmp_path / "run", model, edited=str(files["checkpoint"]), concepts=["star"])  # the control
    with open_edit(files["neon"]).applied(model):
        torch.save(model.components["unet"].state_dict(), files["checkpoint"])
    with pytest.raises(OutputError, match="different settings"):
        begin(tmp_path / "run", model, edited=str(files["checkpoint"]), concepts=["star"])


def test_overwriting_leaves_no_edit_of_what_was_there(model, files, tmp_path):
    both = begin(tmp_path / "run", model, edits=[files["neon"], files["star"]])
    assert len(subject(both, model).on) == 2
    one = begin(tmp_path / "run", model, edits=[files["star"]], overwrite=True)
    assert [edit.concept() for edit in subject(one, model).on] == ["star"]
    again = begin(tmp_path / "run", model, edits=[files["star"], files["neon"]], overwrite=True)
    assert [edit.concept() for edit in subject(again, model).on] == ["star", "neon"]
    (tmp_path / "run" / "bank" / "neon.safetensors").write_bytes(files["star"].read_bytes())
    assert "bank.json" in [each.part for each in findings(again) if each.state == CHANGED]


def test_a_killed_beginning_is_begun_again(model, files, tmp_path, monkeypatch):
    """The second edit's file was never written: it is not measured without it."""
    real, calls = BankFolder.add, []

    def killed(self, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BankFolder, "add", killed)
        begin(tmp_path / "run", model, edits=[files["neon"], files["star"]])
    run = begin(tmp_path / "run", model, edits=[files["neon"], files["star"]])
    assert [edit.concept() for edit in subject(run, model).on] == ["neon", "star"]


def test_what_another_process_begins_is_left_to_it(model, files, tmp_path, monkeypatch):
    """It has written the first of two edits: who comes then is refused, and deletes nothing."""
    edits, run = [files["neon"], files["star"]], tmp_path / "run"
    real = BankFolder.add

    def meanwhile(self, *args, **options):
        real(self, *args, **options)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        monkeypatch.setattr(BankFolder, "add", real)
        with pytest.raises(OutputError, match="another process is working in"), _withdrawn(run):
            begin(run, model, edits=edits)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    monkeypatch.setattr(BankFolder, "add", meanwhile)
    begin(run, model, edits=edits)
    assert [edit.concept() for edit in subject(RunDirectory(run), model).on] == ["neon", "star"]


def test_who_is_refused_deletes_no_folder_in_which_another_works(tmp_path):
    for busy in (True, False):
        folder = tmp_path / f"{busy}" / "run"
        with ExitStack() as other, pytest.raises(OutputError), _withdrawn(folder):
            other.enter_context(locked(folder))
            (folder / "edit.safetensors").write_bytes(b"its own")
            if not busy:
                other.close()
            raise OutputError("refused")
        assert (folder / "edit.safetensors").exists() == busy
        assert folder.parent.exists() == busy, "control"


def test_who_finds_another_at_work_deletes_nothing_even_if_that_one_has_just_ended(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(BusyError), _withdrawn(folder), locked(folder):
        (folder / "edit.safetensors").write_bytes(b"its own")
        with locked(folder):
            pass
    assert (folder / "edit.safetensors").exists()


def test_a_name_beside_a_file_that_says_its_own_is_refused(model, files, tmp_path):
    with pytest.raises(ConfigError, match="--concept"):
        begin(tmp_path / "run", model, edits=[files["neon"]], concepts=["star"])
    assert not (tmp_path / "run").exists()


def test_what_nobody_named_is_refused_and_nothing_is_left(model, files, tmp_path):
    edit = open_edit(files["neon"])
    WeightEdit(dict(edit.deltas()), EditInfo("test", ())).save(tmp_path / "nameless.safetensors")
    with pytest.raises(ConfigError, match="--concept"):
        begin(tmp_path / "run", model, edits=[tmp_path / "nameless.safetensors"])
    assert not (tmp_path / "run").exists()
    named = begin(tmp_path / "run", model, edits=[tmp_path / "nameless.safetensors"], concepts=["neon"])
    assert named.origin().concept_names() == ["neon"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "nothing was"),
        ("RUN --edit x", "RUN and --edit"),
        ("--edit x", "--out"),
        ("--edited x --out y", "--concept"),
        ("RUN --out y", "--out"),
        ("--edit x --edited y --out z", "--edit and --edited"),
    ],
)
def test_what_is_measured_is_named_once(words, said):
    told = CliRunner().invoke(app, ["evaluate", *words.split()], terminal_width=200)
    assert told.exit_code == 2 and said in " ".join(told.stderr.split())


def test_two_checkpoints_are_audited_from_the_command_line(files, tmp_path, monkeypatch):
    for name in ("TARGET_TEMPLATES", "NEIGHBOUR_TEMPLATES"):
        monkeypatch.setattr(suite, name, {kind: texts[:2] for kind, texts in getattr(suite, name).items()})
    words = ["--model", "canvas", "--edited", files["checkpoint"], "--concept", "star", "--out", tmp_path / "audit"]
    options = "--suite concept --judge canvas --clip canvas-clip --seeds 1 --everyday 2 --steps 4 --guidance 4 --retain heart --retain fish"
    told = CliRunner().invoke(app, ["evaluate", *map(str, words), *options.split()], catch_exceptions=False)
    assert told.exit_code == 0 and (tmp_path / "audit" / "report.html").exists()
    scores = {score.name for score in RunDirectory(tmp_path / "audit").read_scores()["concept"]["edited"]}
    assert {"target shown", "distance kept", "CMMD", "CLIP score"} <= scores


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command loads a model."""

    class Loaded(Exception):
        pass

    def load(*_: object, **__: object) -> None:
        raise Loaded

    for name in ("load", "load_diffusion"):
        monkeypatch.setattr(f"mu.models.{name}", load)


@pytest.mark.parametrize("verb", ["evaluate --edited OTHER", "import OTHER"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.pt", {}, "does not exist"),
        ("empty.safetensors", {"": b""}, "is empty"),
        ("page.ckpt", {"": b"<!DOCTYPE html><title>404</title>"}, "HTML page"),
        ("pointer.safetensors", {"": b"version https://git-lfs.github.com/spec/v1\n"}, "git lfs pull"),
        ("short.safetensors", {"": b"\x00\x01\0\0\0\0\0\0{"}, "corrupt"),
        ("image.png", {"": b"\x89PNG"}, "PNG image"),
        ("images", {"0_0.png": b"\x89PNG"}, "holds no weights"),
        ("part", {"unet/config.json": b"{}", "vae/model.safetensors": b"\x89PNG"}, "unet holds no weights"),
        ("pipeline", {"unet/diffusion_pytorch_model.bin": b""}, "is empty"),
    ],
)
def test_wrong_edited_weights_are_told_before_a_model_is_loaded(verb, name, content, said, unloaded, tmp_path):
    other, out = tmp_path / name, tmp_path / ("e.safetensors" if "import" in verb else "audit")
    for path, each in content.items():
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_bytes(each)
    words = verb.replace("OTHER", str(other)).split()
    told = CliRunner().invoke(app, [*words, "--model", "canvas", "--concept", "star", "--out", str(out)])
    assert told.exit_code == 2 and told.stderr.count("error: ") == 1 and said in told.stderr, told.stderr
    assert not out.exists()


@pytest.mark.parametrize("verb", ["evaluate --edited OTHER", "import OTHER"])
def test_control_a_model_is_loaded_for_good_weights(verb, files, unloaded, tmp_path):
    """Also where a file that nothing reads lies beside them: here an optimizer's state in a folder of a LoRA."""
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(files["star"].read_bytes())
    (tmp_path / "lora" / "optimizer.bin").write_bytes(b"\x80")
    for other in (files["checkpoint"], tmp_path / "lora", "canvas"):
        words = [*verb.replace("OTHER", str(other)).split(), "--model", "canvas", "--concept", "star"]
        out = tmp_path / ("e.safetensors" if "import" in verb else "audit")
        assert type(CliRunner().invoke(app, [*words, "--out", str(out)]).exception).__name__ == "Loaded"


def test_a_folder_of_other_files_is_not_filled(model, files, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    with pytest.raises(OutputError, match="something else"):
        begin(tmp_path / "mine", model, edits=[files["neon"]])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious.txt"]


def test_a_bank_with_all_restored_has_nothing_to_measure(model, files, tmp_path):
    bank = BankFolder(tmp_path / "bank")
    bank.add(model, open_edit(files["neon"]))
    bank.restore("neon")
    with pytest.raises(ConfigError, match="switched off"):
        begin(tmp_path / "run", model, edits=[tmp_path / "bank"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strength", [0.0, -1.0])
def test_a_strength_that_erases_nothing_is_not_measured(strength, model, files, tmp_path):
    bank = BankFolder(tmp_path / "bank")
    bank.add(model, open_edit(files["neon"]), strength=strength)
    with pytest.raises(ConfigError, match=f"strength {strength:g}, which erases nothing"):
        begin(tmp_path / "run", model, edits=[bank.folder])
    with pytest.raises(ConfigError, match="erases nothing"):
        evaluate(RunDirectory(tmp_path / "run"), "concept", model, bank.open(model))
    assert not (tmp_path / "run").exists()
    bank.erase("neon", strength=0.5)  # the control
    assert begin(tmp_path / "run", model, edits=[bank.folder]).config.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        "--suite concept --judge canvas --base-answers {file}",
        "--suite concept --judge classifier:{file}",
        "--suite concept --judge canvas --guidance nan --retain heart",
        "--suite prompts",
    ],
)
def test_a_refused_audit_leaves_nothing(wrong, files, tmp_path):
    (tmp_path / "file").write_text("")
    words = f"evaluate --edit {files['star']} --out {tmp_path / 'new' / 'run'} {wrong.format(file=tmp_path / 'file')}"
    told = CliRunner().invoke(app, words.split())
    assert told.exit_code and isinstance(told.exception, MuError | SystemExit) and not (tmp_path / "new").exists()
    begin(tmp_path / "old", mu.load("canvas"), edits=[files["star"]])
    words = words.replace(str(tmp_path / "new" / "run"), str(tmp_path / "old"))
    assert CliRunner().invoke(app, words.split()).exit_code
    assert (tmp_path / "old" / "edit.safetensors").exists()  # the control: what was there before stays


def test_a_folder_with_what_a_killed_process_left_is_begun(model, files, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".partial-config-abcd1234.yaml").write_text("model")
    assert begin(run, model, edits=[files["star"]]).config.exists()
    assert not list(run.glob(".partial*"))
    other = tmp_path / "other"
    other.mkdir()
    (other / ".partial-config-of-mine.txt").write_text("")
    with pytest.raises(OutputError, match="something else"):  # the control: no name that mu gives
        begin(other, model, edits=[files["star"]])
