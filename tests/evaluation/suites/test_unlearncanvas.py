"""Suite unlearncanvas: every average against a table worked out by hand, and the whole way at small size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch import Tensor
from typer.testing import CliRunner

from mu.cli import app
from mu.core.errors import ConfigError, DataError, MissingDependency, OutputError
from mu.core.evidence import CHANGED, findings, read_evidence
from mu.core.run import RunDirectory
from mu.core.workers import Shard
from mu.diffusion.image_files import save_image
from mu.edits.edit import EditInfo
from mu.edits.files import open_edit
from mu.edits.weights import WeightEdit
from mu.evaluation import backbones
from mu.evaluation.answers import Found, Subject
from mu.evaluation.judges import Seen, open_judge
from mu.evaluation.metrics.frechet import frechet_distance
from mu.evaluation.metrics.intervals import wilson
from mu.evaluation.suites import SUITES, evaluate, evaluate_found
from mu.evaluation.suites import unlearncanvas as suite
from mu.evaluation.suites.unlearncanvas import VARIANTS, UnlearnCanvasSuite, cells, request
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import select

# What two classifiers see. "-" is an object in no style, which only SAeUron's variant asks for.
TABLE = """
theme        object  seed  style seen   object seen
Van_Gogh     Dogs    1     Monet        Dogs
Van_Gogh     Dogs    2     Van_Gogh     Dogs
Van_Gogh     Cats    1     Monet        Dogs
Van_Gogh     Cats    2     Monet        Cats
Monet        Dogs    1     Monet        Dogs
Monet        Dogs    2     Monet        Cats
Monet        Cats    1     Winter       Cats
Monet        Cats    2     Monet        Cats
Seed_Images  Dogs    1     Monet        Dogs
Seed_Images  Dogs    2     Seed_Images  Cats
Seed_Images  Cats    1     Monet        Cats
Seed_Images  Cats    2     Monet        Dogs
-            Dogs    1     -            Cats
-            Dogs    2     -            Cats
-            Cats    1     -            Cats
-            Cats    2     -            Cats
"""
# By hand. Style Van_Gogh: it is seen in 1 of its 4 images. Monet is seen in 3 of 4, Seed_Images in 1 of 4.
# Dogs are seen in 2, 1, 1 of 2 images by theme, Cats in 1, 2, 1 of 2; in no style, Dogs in 0 of 2 and Cats in 2 of 2.
BY_HAND = {
    ("Van Gogh", "published"): ("3/4", "3/4", "2/3"),  # CRA: Dogs 4/6, Cats 4/6
    ("Van Gogh", "seed-images"): ("3/4", "1/2", "2/3"),  # IRA: Monet 3/4, Seed_Images 1/4
    ("Van Gogh", "no-seed-images"): ("3/4", "3/4", "3/4"),  # CRA: Dogs 3/4, Cats 3/4
    ("Van Gogh", "retained-only"): ("3/4", "3/4", "5/8"),  # CRA: Dogs 2/4, Cats 3/4
    ("Van Gogh", "saeuron"): ("3/4", "3/4", "1/2"),  # CRA: Dogs 0/2, Cats 2/2
    ("Dogs", "published"): ("1/3", "2/3", "1/2"),  # CRA: Van_Gogh 1/4, Monet 3/4
    ("Dogs", "seed-images"): ("1/3", "2/3", "5/12"),  # CRA: Van_Gogh 1/4, Monet 3/4, Seed_Images 1/4
    ("Dogs", "no-seed-images"): ("1/4", "3/4", "1/2"),
    ("Dogs", "retained-only"): ("1/3", "2/3", "1/4"),  # CRA on Cats: Van_Gogh 0/2, Monet 1/2
    ("Dogs", "saeuron"): ("1/2", "5/6", "1/2"),  # UA: Dogs 3/6; IRA: Cats 5/6
}
THEMES, OBJECTS = ["Seed Images", "monet", "Van_Gogh"], ["Cats", "dogs"]


def seen_in_table() -> dict[str, tuple[str, str]]:
    """The two answers by file stem."""
    rows = [line.split() for line in TABLE.strip().splitlines()[1:]]
    return {
        f"{name}_seed{seed}" if theme == "-" else f"{theme}_{name}_seed{seed}": (style, thing)
        for theme, name, seed, style, thing in rows
    }


class Told:
    """A judge of one kind that answers from the table for edited images, and what was asked for base images."""

    def __init__(self, name: str, queue: list[Path], right: set[str]):
        self.name, self.queue, self.right = f"unlearncanvas:{name}", queue, right
        self.place = 0 if name == "styles" else 1

    def known(self, concept: str) -> str:
        styles = {"Van_Gogh", "Monet", "Seed_Images", "Winter"}
        name = concept.replace(" ", "_")
        if (name in styles) is not (self.place == 0):
            raise DataError(f"the judge {self.name} has no class for {concept!r}")
        return name

    def rivals(self, concept: str) -> list[str]:
        return []

    def look(self, images: Tensor, among: Sequence[str]) -> Seen:
        answers = []
        for path in self.queue[-len(images) :]:
            theme, _, name = path.stem.partition("_seed")[0].rpartition("_")
            asked = (theme, name)
            answers.append((asked if path.parent.name in self.right else seen_in_table()[path.stem])[self.place])
        return Seen(answers, torch.ones(len(images), 3))

    def facts(self, among: Sequence[str]) -> dict[str, Any]:
        return {"judge": self.name}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Judges that answer by file names, and images that are never read. Holds the columns that they judge right."""
    queue: list[Path] = []
    right = {"base"}

    def batches(paths: Sequence[Path], size: int = 32) -> Any:
        queue.extend(paths)
        yield torch.zeros(len(paths), 3, 2, 2)

    monkeypatch.setattr(suite, "open_judge", lambda name, device: Told(name, queue, right))
    monkeypatch.setattr(suite, "batches", batches)
    monkeypatch.setattr(suite, "put_most_changed", lambda *_: None)
    return right


def planned(*concepts: str, **options: Any) -> UnlearnCanvasSuite:
    usual = {"judge": ["objects", "styles"], "themes": THEMES, "objects": OBJECTS}
    return UnlearnCanvasSuite(Subject(concepts, None, torch.device("cpu")), [1, 2], **{**usual, **options})


class There(Found):
    """Images that count as there."""

    def here(self, rows: Any) -> Any:
        return list(rows)


@pytest.mark.parametrize(("request_", "by_hand"), BY_HAND.items())
def test_every_variant_against_the_table_by_hand(request_, by_hand, told, tmp_path):
    concept, variant = request_
    themes = [name for name in THEMES if VARIANTS[variant].photos or name != "Seed Images"]
    plan = planned(concept, variant=variant, themes=themes)
    table, how = plan.score(RunDirectory(tmp_path), There(Path("edited"), Path("base"), torch.device("cpu")))
    found = {score.name: score for score in table["edited"]}
    assert [found[name].value for name in ("UA", "IRA", "CRA")] == pytest.approx([float(Fraction(v)) for v in by_hand])
    assert [score.value for score in table["base"][:3]] == [0, 1, 1]
    assert how["averages"] == VARIANTS[variant].what and "FID" in how["not measured"]
    assert all(score.interval and score.change and not score.doubt for score in table["edited"])
    assert (f"variant {variant}" in plan.protocol) is (variant != "published")


def test_intervals_are_of_the_images_that_were_counted(told, tmp_path):
    plan = planned("Van Gogh style")
    table, _ = plan.score(RunDirectory(tmp_path), There(Path("edited"), Path("base"), torch.device("cpu")))
    ua, ira, cra = table["edited"]
    assert (ua.n, ua.interval) == (4, wilson(3, 4)) and (ira.n, ira.interval) == (4, wilson(3, 4))
    assert (cra.n, cra.interval) == (12, wilson(8, 12)) and ua.change[0] <= 0.75 <= ua.change[1]
    assert ira.per_item == {"Monet": 0.75} and cra.per_item == pytest.approx({"Cats": 4 / 6, "Dogs": 4 / 6})


def test_a_base_that_does_not_show_the_style_withholds_the_headline(told, tmp_path):
    folders = There(Path("edited"), Path("base"), torch.device("cpu"))
    sure = planned("Van Gogh").score(RunDirectory(tmp_path), folders)[0]
    told.clear()  # now the base's answers are those of the table
    doubted = planned("Van Gogh").score(RunDirectory(tmp_path), folders)[0]
    assert not sure["edited"][0].doubt and "only 25%" in doubted["edited"][0].doubt
    assert doubted["base"][0].doubt and not doubted["edited"][1].doubt
    alone = planned("Van Gogh").score(RunDirectory(tmp_path), There(Path("edited"), None, torch.device("cpu")))[0]
    assert [*alone] == ["edited"] and not alone["edited"][0].doubt  # the verdict says that the base is missing
    assert alone["edited"][0].value == sure["edited"][0].value and alone["edited"][0].change is None


def test_a_concept_that_no_image_asks_for_is_said(told, tmp_path):
    folders = There(Path("edited"), Path("base"), torch.device("cpu"))
    _, how = planned("Van Gogh style", "nudity").score(RunDirectory(tmp_path), folders)
    assert how["not measured: concepts"] == ["nudity"]
    _, how = planned("Van Gogh style").score(RunDirectory(tmp_path), folders)
    assert "not measured: concepts" not in how  # the control


# -- the answer set ---------------------------------------------------------------------------------------------------


def test_the_whole_answer_set_is_the_published_one():
    found = cells(suite.STYLES, suite.OBJECTS, suite.SEEDS, VARIANTS["published"])
    assert len(found) == len({cell.row.name for cell in found}) == 51 * 20 * 5
    by_name = {cell.row.name: cell.row for cell in found}
    assert SUITES["unlearncanvas"].seeds == suite.SEEDS
    row = by_name["Pop_Art_Sandwiches_seed588.jpg"]
    assert (row.prompt, row.seed) == ("A Sandwiches image in Pop Art style.", 588)
    assert by_name["Seed_Images_Sea_seed188.jpg"].prompt == "A Sea image in Seed Images style."
    names = [name for name in suite.STYLES if name != "Seed_Images"]
    others = {cell.row.name: cell.row for cell in cells(names, suite.OBJECTS, suite.SEEDS, VARIANTS["saeuron"])}
    assert len(others) == 51 * 20 * 5 and others["saeuron/Sea_seed188.jpg"].prompt == "An image of Sea."
    assert others["saeuron/Pop_Art_Sea_seed188.jpg"].prompt == "An image of Sea in Pop Art style."
    assert not {*others} & {*by_name}  # the same cell in other words never takes the other's image


def test_one_theme_or_object_is_asked_for():
    themes, objects = suite.STYLES, suite.OBJECTS
    assert request(["Van Gogh style"], themes, objects) == ("style", "Van_Gogh")
    assert request(["artist sketch"], themes, objects) == ("style", "Artist_Sketch")  # and not Sketch
    assert request(["Sketch"], themes, objects) == ("style", "Sketch")
    assert request(["jellyfish"], themes, objects) == ("object", "Jellyfish")
    for concepts, said in ((["neon glow"], "none of them"), (["Monet", "Dogs"], "names 2")):
        with pytest.raises(DataError, match=said):
            request(concepts, themes, objects)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"variant": "saeron"}, ConfigError, "'saeuron'"),
        ({"themes": ["Van Gogh", "Monnet"]}, ConfigError, "'Monet'"),
        ({"themes": ["Monet"]}, DataError, "Van Gogh"),
        ({"themes": ["Van Gogh", "Seed Images"]}, ConfigError, "of its kind"),
        ({"judge": []}, ConfigError, "style50_cls.pth"),
        ({"judge": ["styles"]}, DataError, "objects of UnlearnCanvas"),
        ({"reference": Path("nowhere")}, DataError, "1.jpg is missing"),
    ],
)
def test_a_request_that_cannot_be_measured_is_one_line(options, error, said, told):
    with pytest.raises(error, match=said):
        planned("Van Gogh", **options)
    assert planned("Van Gogh").erased == "Van_Gogh"  # the control


def test_departures_are_in_the_protocol_s_name(tiny):
    as_published = SimpleNamespace(pipeline=SimpleNamespace(scheduler=DDIMScheduler()), default_size=512)

    def name(
        variant="published", themes=suite.STYLES, seeds=suite.SEEDS, steps=100, guidance=9.0, model=as_published, judges=()
    ):  # fmt: skip
        return suite.named_protocol(variant, themes, suite.OBJECTS, seeds, steps, guidance, model, judges)

    assert name(judges=["unlearncanvas:a.pth", "unlearncanvas:b.pth"]) == "unlearncanvas/1"
    assert name(themes=["Monet", "Van_Gogh"], seeds=[188]) == "unlearncanvas/1, 2 themes (Monet Van_Gogh), 1 seed (188)"
    assert name(steps=20, guidance=7.5) == "unlearncanvas/1, 20 steps, guidance 7.5"
    assert name(model=tiny, judges=["clip:x"]) == f"unlearncanvas/1, {tiny.default_size} px, judge clip:x"
    as_published.pipeline.scheduler = PNDMScheduler()
    assert name() == "unlearncanvas/1, PNDMScheduler" and name(model=None) == "unlearncanvas/1, sampled elsewhere"
    assert len({name(themes=suite.STYLES[k : k + 9]) for k in range(5)}) == 5
    others = name("no-seed-images", [style for style in suite.STYLES if style != "Seed_Images"], model=tiny)
    assert others == f"unlearncanvas/1, variant no-seed-images, {tiny.default_size} px"


def test_fid_is_of_the_features_of_both_sets(tmp_path):
    draw = torch.Generator().manual_seed(0)
    sets = [torch.rand(4, 3, size, size, generator=draw) for size in (6, 9)]
    paths = [[tmp_path / f"{k}_{i}.png" for i in range(4)] for k in (0, 1)]
    for images, places in zip(sets, paths, strict=True):
        for image, place in zip(images, places, strict=True):
            save_image(image, place)
    means = lambda images: images.mean(dim=(2, 3))  # noqa: E731
    found = frechet_distance(*(suite.features_of(means, places) for places in paths))
    assert found == pytest.approx(frechet_distance(*(means(images) for images in sets)), rel=0.05) and found > 0


# -- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifiers(timm_vit: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("classifiers")
    for name, classes in (("style50.pth", 51), ("style50_cls.pth", 20)):
        torch.save({"model_state_dict": timm_vit(classes)}, folder / name)
    return [f"unlearncanvas:{folder / name}" for name in ("style50.pth", "style50_cls.pth")]


SMALL: dict[str, Any] = {"themes": ["Monet", "Van_Gogh"], "objects": ["Cats", "Dogs"], "steps": 2}


@pytest.fixture(scope="module")
def measured(tiny: DiffusionModel, classifiers: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of random weights whose edit tints every image, measured after one of its two shards was made apart."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "tint")
    run.folder.mkdir()
    shifts = {name: torch.full_like(p, 1.5) for name, p in select(tiny, "unet.conv_out.bias").items()}
    edit = WeightEdit(shifts, EditInfo("test", ("Van Gogh",)))
    edit.save(run.edit)
    options = {**SMALL, "judge": classifiers, "seeds": [188, 288]}
    assert evaluate(run, "unlearncanvas", tiny, edit, shard=Shard(2, 2), **options) == {}
    alone = {path.name: path.read_bytes() for path in run.answers.rglob("shards/*/edited/*.jpg")}
    return run, evaluate(run, "unlearncanvas", tiny, edit, **options), alone


def test_files_and_numbers_of_the_whole_way(measured: Any, classifiers: list[str]) -> None:
    run, table, alone = measured
    folder = run.answers / "unlearncanvas" / "edited"
    names = {f"{s}_{o}_seed{k}.jpg" for s in ("Monet", "Van_Gogh") for o in ("Cats", "Dogs") for k in (188, 288)}
    assert {path.name for path in folder.glob("*.jpg")} == names
    assert len(alone) == 4 and all((folder / name).read_bytes() == content for name, content in alone.items())
    judges = [open_judge(name) for name in classifiers]

    def share(column: str, kind: int, name: str) -> float:
        """Share of the images in one folder that ask for a name on which its classifier sees it."""
        paths = sorted(path for path in (folder.parent / column).glob("*.jpg") if name in path.name)
        images = suite.read_images(paths)
        return sum(answer == name for answer in judges[kind].look(images, [name]).answers) / len(paths)

    for column in ("base", "edited"):
        ua, ira, cra = (score.value for score in table[column][:3])
        assert ua == pytest.approx(1 - share(column, 0, "Van_Gogh")) and ira == pytest.approx(share(column, 0, "Monet"))
        assert cra == pytest.approx((share(column, 1, "Cats") + share(column, 1, "Dogs")) / 2)
    protocol = table["edited"][0].protocol
    assert protocol.startswith("unlearncanvas/1, 2 themes (Monet Van_Gogh), 2 objects (Cats Dogs), 2 seeds (188 288)")
    assert "2 steps" in protocol and "64 px" in protocol
    assert not [each for each in findings(run) if each.state == CHANGED]
    assert [panel.title for panel in run.read_panels()] == ["What should stay and changed most (unlearncanvas)"]


def test_another_variant_of_the_prompts_keeps_the_images_of_this_one(measured: Any, tiny: DiffusionModel) -> None:
    """One judge of any concept stands for both classifiers, and the protocol's name says so."""
    run, *_ = measured
    before = {path: path.read_bytes() for path in run.answers.rglob("*.jpg")}
    edit = open_edit(run.edit)
    options = {**SMALL, "judge": "clip:canvas-clip", "seeds": [188], "variant": "saeuron"}
    assert evaluate(run, "unlearncanvas", tiny, edit, shard=Shard(1, 2), **options) == {}
    table = evaluate(run, "unlearncanvas", tiny, edit, **options)
    assert "variant saeuron" in table["base"][0].protocol and "judge clip:canvas-clip" in table["base"][0].protocol
    own = {path.name for path in (run.answers / "unlearncanvas" / "edited" / "saeuron").glob("*.jpg")}
    assert own == {f"{stem}_seed188.jpg" for stem in ("Cats", "Dogs", "Monet_Cats", "Monet_Dogs")} | {
        f"Van_Gogh_{name}_seed188.jpg" for name in ("Cats", "Dogs")
    }
    assert all(path.read_bytes() == content for path, content in before.items())
    assert table["edited"][2].n == 2  # CRA is on the two objects in no style


def found_by(out: Path, images: Path, classifiers: list[str], *more: object) -> Any:
    words = ["evaluate", "--images", images, "--suite", "unlearncanvas", "--concept", "Van Gogh", "--out", out]
    words += ["--themes", "Monet,Van_Gogh", "--objects", "Cats,Dogs", "--seeds", "188,288", "--device", "cpu"]
    words += [word for judge in classifiers for word in ("--judge", judge)]
    return CliRunner().invoke(app, [str(word) for word in (*words, *more)], prog_name="mu")


def test_images_made_elsewhere_get_the_same_numbers(measured: Any, classifiers: list[str], tmp_path: Path) -> None:
    run, table, _ = measured
    base, edited = (run.answers / "unlearncanvas" / column for column in ("base", "edited"))
    done = found_by(tmp_path / "both", edited, classifiers, "--base-images", base, "--json")
    assert done.exit_code == 0, done.output
    told, kept = json.loads(done.stdout), RunDirectory(tmp_path / "both").read_scores()["unlearncanvas"]
    for column in ("base", "edited"):
        assert [score.value for score in kept[column]] == [score.value for score in table[column]]
        shown = [None if score.doubt else score.value for score in table[column]]
        assert [score["value"] for score in told[column]] == shown and None in shown
    assert (tmp_path / "both" / "report.html").is_file()
    alone = found_by(tmp_path / "alone", edited, classifiers)
    assert alone.exit_code == 0 and "The base was not measured" in alone.stdout
    assert [*RunDirectory(tmp_path / "alone").read_scores()["unlearncanvas"]] == ["edited"]


def test_fid_compares_what_should_stay_with_five_real_images_of_each_cell(
    measured: Any, classifiers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The erased style's real images need not be there. Mean colours stand in for Inception's features."""
    folder, real = measured[0].answers / "unlearncanvas" / "edited", []
    for name in ("Cats", "Dogs"):
        for k in range(1, 6):
            real.append(tmp_path / "real" / "Monet" / name / f"{k}.jpg")
            save_image(torch.rand(3, 8 + k, 8), real[-1])
    save_image(torch.zeros(3, 8, 8), tmp_path / "real" / "Monet" / "Cats" / "6.jpg")
    options: dict[str, Any] = {**SMALL, "judge": classifiers, "seeds": [188, 288], "reference": tmp_path / "real"}
    options.pop("steps")

    given = []

    def network(device: Any, weights: Path | None = None) -> Any:
        given.append(weights)
        return lambda images: images.mean(dim=(2, 3))

    def without(*_: Any) -> Any:
        raise MissingDependency("torch-fidelity", "eval", "FID")

    monkeypatch.setattr(backbones, "inception_features", network)
    fid = evaluate_found(RunDirectory(tmp_path / "a"), "unlearncanvas", ["Van Gogh"], folder, **options)["edited"][-1]
    sets = [suite.features_of(network("cpu"), paths) for paths in (sorted(folder.glob("Monet_*.jpg")), real)]
    assert fid.name == "FID" and fid.n == 4 and fid.value == pytest.approx(frechet_distance(*sets))
    assert "Inception of torch-fidelity" in fid.protocol
    file, given[:] = tmp_path / "w.pth", []
    evaluate_found(RunDirectory(tmp_path / "w"), "unlearncanvas", ["Van Gogh"], folder, inception=file, **options)
    assert given == [file]
    monkeypatch.setattr(backbones, "inception_features", without)
    bare = RunDirectory(tmp_path / "b")
    table = evaluate_found(bare, "unlearncanvas", ["Van Gogh"], folder, **options)
    assert [score.name for score in table["edited"]] == ["UA", "IRA", "CRA"]
    assert "torch-fidelity" in read_evidence(bare).scores["unlearncanvas"].how["not measured"]
    for error, more in ((MissingDependency, {}), (ConfigError, {"reference": None})):  # a file that is named is used
        with pytest.raises(error):
            asked = {**options, "inception": file, **more}
            evaluate_found(RunDirectory(tmp_path / "c"), "unlearncanvas", ["Van Gogh"], folder, **asked)


def test_missing_cells_are_listed_or_left_out(measured: Any, classifiers: list[str], tmp_path: Path) -> None:
    images = tmp_path / "set"
    images.mkdir()
    for path in (measured[0].answers / "unlearncanvas" / "edited").glob("*.jpg"):
        (images / path.name).write_bytes(path.read_bytes())
    (images / "Monet_Dogs_seed288.jpg").unlink()
    (images / "Van_Gogh_Cats_seed188.jpg").rename(images / "Van_Gogh_Cats_seed188.png")  # another ending is found
    refused = found_by(tmp_path / "out", images, classifiers)
    assert refused.exit_code == 2 and not (tmp_path / "out").exists()
    assert "1 images of 8" in refused.stderr and "Monet_Dogs_seed288.jpg" in refused.stderr
    allowed = found_by(tmp_path / "out", images, classifiers, "--allow-missing", "--json")
    assert allowed.exit_code == 0, allowed.output
    ua, ira, cra = json.loads(allowed.stdout)["edited"]
    assert (ua["n"], ira["n"], cra["n"]) == (4, 3, 7)
    (images / "Monet_Dogs_seed188.jpg").write_bytes(b"no image")
    damaged = found_by(tmp_path / "damaged", images, classifiers, "--allow-missing")
    assert damaged.exit_code == 2 and "Monet_Dogs_seed188.jpg" in damaged.stderr and not (tmp_path / "damaged").exists()
    save_image(torch.zeros(3, 8, 12), images / "Monet_Dogs_seed188.jpg")
    assert found_by(tmp_path / "sizes", images, classifiers, "--allow-missing").exit_code == 0  # sizes may differ
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert "another folder" in found_by(tmp_path / "x", nothing, classifiers, "--allow-missing").stderr


def test_results_of_images_never_mix_with_others(measured: Any, classifiers: list[str], tmp_path: Path) -> None:
    run, *_ = measured
    edited = run.answers / "unlearncanvas" / "edited"
    options: dict[str, Any] = {**SMALL, "judge": classifiers, "seeds": [188, 288]}
    options.pop("steps")

    def score(folder: Path, *concepts: str) -> Any:
        return evaluate_found(RunDirectory(folder), "unlearncanvas", concepts, edited, **options)

    assert score(tmp_path / "a", "Van Gogh") == score(tmp_path / "a", "Van Gogh")
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    for folder, concept in (
        (run.folder, "Van Gogh"),
        (tmp_path / "a", "Monet"),
        (own, "Monet"),
        (edited / "x", "Monet"),
    ):
        with pytest.raises(OutputError):
            score(folder, concept)
    with pytest.raises(ConfigError, match="steps"):
        evaluate_found(RunDirectory(tmp_path / "b"), "unlearncanvas", ["Monet"], edited, steps=3)
    with pytest.raises(ConfigError, match=r"concept, .*unlearncanvas"):
        evaluate_found(RunDirectory(tmp_path / "b"), "canvas", ["Monet"], edited)
    with pytest.raises(DataError, match="not a folder"):
        evaluate_found(RunDirectory(tmp_path / "b"), "unlearncanvas", ["Monet"], tmp_path / "c", **options)


@pytest.mark.parametrize(
    "words",
    [
        ("r", "--base-images", "b"),
        ("r", "--allow-missing"),
        ("r", "--concept", "x"),
        ("r", "--images", "i"),
        ("--images", "i", "--suite", "concept", "--out", "r"),
        ("--images", "i", "--concept", "x", "--out", "r"),
        ("--images", "i", "--concept", "x", "--suite", "concept"),
        ("--images", "i", "--concept", "x", "--suite", "concept", "--out", "r", "--model", "canvas"),
    ],
)
def test_options_of_images_made_elsewhere_need_each_other(words: tuple[str, ...], tmp_path: Path) -> None:
    placed = [str(tmp_path / "r") if word == "r" else word for word in words]
    done = CliRunner().invoke(app, ["evaluate", *placed], prog_name="mu")
    assert done.exit_code == 2 and "--images" in done.stderr and not (tmp_path / "r").exists()
