"""Suite worlds: its own judge on rendered images, of which it is known what they show."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mu.core.errors import ConfigError, DataError, ModelError
from mu.core.run import RunDirectory
from mu.data.canvas.grammar import sibling
from mu.data.canvas.scenes import Scene
from mu.data.canvas.world import CANVAS, World
from mu.evaluation.answers import Found, Subject
from mu.evaluation.suites import check_options
from mu.evaluation.suites.worlds import WorldsSuite, neutral_prompts, requested
from mu.models import EMBEDDED
from mu.models.canvas.architecture import Sizes
from mu.models.canvas.folder import RECIPE, world_of

CPU = torch.device("cpu")


def suite(model: str = "canvas", concept: str = "neon", **more: Any) -> WorldsSuite:
    named: Any = SimpleNamespace(name=model)
    return WorldsSuite(Subject((concept,), named, CPU), [1], **more)


def draw(plan: WorldsSuite, folder: Path, shown: Any) -> Path:
    """The images of the suite's rows: ``shown(scene)`` is rendered; of neutral prompts, a star in the last style."""
    folder.mkdir()
    neutral = [Scene(CANVAS.styles[-1], object="star")] * len(plan.neutral)
    for row, scene in zip(plan.rows, [*map(shown, plan.scenes), *neutral], strict=True):
        Image.fromarray(CANVAS.render(scene, 5)).save(folder / row.name)
    return folder


def test_shares_by_the_world_s_judge(tmp_path: Path) -> None:
    """Neon is drawn as a photo; a star stays a star; what shows neon unasked is none of the neutral images."""
    if not EMBEDDED["canvas-judge"].exists():
        pytest.skip("the embedded judge is not in this checkout")
    plan = suite()
    base = draw(plan, tmp_path / "base", lambda scene: scene)
    edited = draw(plan, tmp_path / "edited", lambda s: Scene("photo", object=s.object) if s.style == "neon" else s)
    table, how = plan.score(RunDirectory(tmp_path), Found(edited, base, CPU))
    values = {column: {score.name: score for score in scores} for column, scores in table.items()}
    assert values["base"]["UA"].value < 0.2 and values["edited"]["UA"].value > 0.8
    for name in ("IRA", "CRA"):
        assert values["edited"][name].value > 0.9 and values["edited"][name].change is not None
    assert values["edited"]["unasked"].value == 0 and values["base"]["UA"].change is None
    assert {score.protocol for scores in table.values() for score in scores} == {"worlds/1"}
    assert how["world"] == "canvas" and not values["edited"]["UA"].doubt
    table, _ = plan.score(RunDirectory(tmp_path), Found(base, edited, CPU))
    assert "only" in {score.name: score for score in table["edited"]}["UA"].doubt, "control: the base never showed it"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of world 2 without its models: only its recipe is read."""
    world, folder = sibling(2), tmp_path / "world-2"
    (folder / "diffusion").mkdir(parents=True)
    recipe = {"world": 2, "sizes": asdict(Sizes.drawn(2)), "styles": world.styles, "objects": world.objects}
    (folder / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")
    return folder


def test_a_sibling_is_known_by_its_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, _, judge = world_of(str(home / "diffusion"))
    assert world.styles == sibling(2).styles and judge == home / "judge"
    opened: list[Path] = []
    monkeypatch.setattr("mu.evaluation.suites.worlds.Judge.open", lambda place, device: opened.append(place))
    plan = suite(str(home / "diffusion"), world.objects[0], steps=3)
    assert opened == [home / "judge"] and plan.kind == "object"
    assert plan.guidance == Sizes.drawn(2).guidance and plan.protocol == "worlds/1, 3 steps"
    assert (
        plan.asked[0].prompt == world.prompt(Scene(world.styles[0], object=world.objects[0])) and len(plan.asked) == 64
    )


def test_what_is_no_world_is_refused(home: Path) -> None:
    with pytest.raises(ModelError, match=r"of no known world: name canvas"):
        world_of(str(home))
    recipe = json.loads((home / RECIPE).read_text())
    for damage in ({"styles": ["other"]}, {"world": "x"}, {"sizes": None}):
        (home / RECIPE).write_text(json.dumps(recipe | damage))
        with pytest.raises(DataError, match="train the world again"):
            world_of(str(home / "diffusion"))


def test_one_concept_of_the_world_is_measured() -> None:
    assert requested(["neon style"], CANVAS) == ("neon", "style") and requested(["star"], CANVAS) == ("star", "object")
    with pytest.raises(ConfigError, match="measures one concept, and 2"):
        requested(["neon", "star"], CANVAS)
    with pytest.raises(DataError, match="names none of: photo"):
        requested(["Van Gogh"], CANVAS)
    with pytest.raises(ConfigError, match="takes no judge"):
        check_options("worlds", None, {"judge": "canvas"})


@pytest.mark.parametrize("world", [CANVAS, sibling(2)])
def test_neutral_prompts_name_nothing_of_the_kind(world: World) -> None:
    for kind, own, others in (("style", world.styles, world.objects), ("object", world.objects, world.styles)):
        words = " / ".join(neutral_prompts(world, kind))  # type: ignore[arg-type]
        assert not any(name in words.split(" / ") for name in own)
        assert all(name in words for name in others), "control"
