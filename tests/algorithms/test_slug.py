"""SLUG: the formulas of both gradients, the front, the searches, and that the concept goes while the rest stays."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mu
from mu.algorithms.single_layer_unlearning_gradient import algorithm as slug_algorithm
from mu.algorithms.single_layer_unlearning_gradient import probe as probes
from mu.algorithms.single_layer_unlearning_gradient.algorithm import SingleLayerUnlearningGradientAlgorithm
from mu.algorithms.single_layer_unlearning_gradient.configs import (
    GradientConfig,
    ImagesConfig,
    SearchConfig,
    SlugConfig,
)
from mu.algorithms.single_layer_unlearning_gradient.data_handler import SingleLayerUnlearningGradientDataHandler
from mu.algorithms.single_layer_unlearning_gradient.model import (
    LayerScore,
    candidates,
    deepest,
    grouped,
    layer_scores,
    pareto_front,
)
from mu.algorithms.single_layer_unlearning_gradient.preconditioner import preconditioned, second_moments
from mu.algorithms.single_layer_unlearning_gradient.probe import (
    AnswerProbe,
    ClipProbe,
    Direction,
    Outcome,
    Probe,
    Rows,
    Tally,
    _drawn,
)
from mu.algorithms.single_layer_unlearning_gradient.trainer import (
    Curve,
    best,
    bisect,
    gradients,
    grid,
    joint_factor,
    search,
    summed,
)
from mu.core.errors import ConfigError, DataError, EditError, ModelError
from mu.core.run import RunDirectory
from mu.data.canvas import RenderedPair, rendered_pairs
from mu.data.questions import QUESTIONS
from mu.models.clip import ClipModel
from mu.models.contrastive import encode_pairs, losses
from mu.models.formats.open_clip_names import open_clip_map
from mu.models.formats.packing import pack
from mu.models.parameters import find_module, find_parameter, select
from mu.models.towers import Tower
from mu.models.zero_shot import Target, ZeroShot, canvas_tasks, target_of

EXCLUDE = SlugConfig().layers.exclude
SMALL = {"data": {"n_forget": 48, "n_retain": 64, "per_class": 6}, "search": {"steps": 8}, "layers": {"max_front": 2}}


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    found = mu.load("canvas-clip", device="cpu")
    assert isinstance(found, ClipModel)
    return found


def method(
    concepts: Sequence[str], model: str = "canvas-clip", **overrides: Any
) -> SingleLayerUnlearningGradientAlgorithm:
    chosen = SingleLayerUnlearningGradientAlgorithm
    return chosen(chosen.for_concepts(concepts, model).merged(SMALL, overrides))


# -- gradients ---------------------------------------------------------------------------------------------------------


def batch_means(clip: ClipModel, pairs: list, parameters: dict, objective: Any, B: int) -> list[dict[str, Tensor]]:
    """One gradient of the mean loss for each batch, the slow way."""
    found = []
    for k in range(0, len(pairs) // B * B if objective == "contrastive" else len(pairs), B):
        for p in parameters.values():
            p.requires_grad_(True)
        loss = losses(clip, pairs[k : k + B], objective, B).mean()
        found.append(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
        for p in parameters.values():
            p.requires_grad_(False)
    return found


NAME = "text_encoder.encoder.layers.1.mlp.fc1.weight"


def test_the_default_gradient_is_the_exact_mean_and_compat_is_what_was_released(clip: ClipModel) -> None:
    """Forget set of 10 in batches of 4: the last batch of 2 weighs half by default and in full under ``batch_mean``."""
    forget, retain, parameters = rendered_pairs(10, 1, "neon"), rendered_pairs(8, 2), select(clip, [NAME])
    g = [each[NAME] for each in batch_means(clip, forget, parameters, "cosine", 4)]
    h = [each[NAME] for each in batch_means(clip, retain, parameters, "contrastive", 4)]

    def found(
        compat: list, objective: Any = "cosine", pairs: list = forget, carried: Any = None, kind: Any = "forget"
    ) -> tuple[Tensor, Any]:
        settings = GradientConfig(batch_size=4, compat=compat)
        mean, more = gradients(clip, pairs, parameters, objective, settings, carried, kind=kind)
        return mean[NAME], more

    close = {"rtol": 1e-3, "atol": 1e-7}
    assert torch.allclose(found([])[0], (4 * g[0] + 4 * g[1] + 2 * g[2]) / 10, **close)
    assert torch.allclose(found(["batch_mean"])[0], (g[0] + g[1] + g[2]) / 3, **close)
    cumulative, carried = found(["cumulative"])
    assert torch.allclose(cumulative, (3 * g[0] + 2 * g[1] + g[2]) / 3, **close), "batch i of N counts N - i times"
    leaked, _ = found(["cumulative"], "contrastive", retain, carried, "retain")
    assert torch.allclose(leaked, g[0] + g[1] + g[2] + (2 * h[0] + h[1]) / 2, **close), (
        "the retain sum starts from the forget sum"
    )
    assert torch.allclose(found([], "contrastive", retain)[0], (h[0] + h[1]) / 2, **close)
    assert not torch.allclose(cumulative, found(["batch_mean"])[0], rtol=1e-2), "control"

    c = [each[NAME] for each in batch_means(clip, forget, parameters, "contrastive", 4)[:2]]
    c += [each[NAME] for each in batch_means(clip, forget[8:], parameters, "contrastive", 2)]
    whole, all_three = (c[0] + c[1]) / 2, (c[0] + c[1] + c[2]) / 3
    for compat, kind, wanted in (
        ([], "forget", whole),
        (["batch_mean"], "forget", all_three),
        (["batch_mean"], "retain", whole),
        (["batch_mean", "partial_retain"], "retain", all_three),
    ):
        mean, _ = found(compat, "contrastive", forget, kind=kind)
        assert torch.allclose(mean, wanted, **close), (compat, kind)
    assert not torch.allclose(whole, all_three, rtol=1e-1), "control: the two pairs matter"


def test_the_step_along_the_forget_gradient_lowers_the_pairs_cosine(clip: ClipModel) -> None:
    pairs = rendered_pairs(16, 1, "star")
    parameters = select(clip, ["visual_projection.weight"])
    g, _ = gradients(clip, pairs, parameters, "cosine", GradientConfig())
    score = layer_scores(parameters, g, g)["visual_projection.weight"]
    parameter = find_parameter(clip, "visual_projection.weight")
    kept, cosines = parameter.detach().clone(), []
    for rho in (-0.1, 0.0, 0.1):
        with torch.no_grad():
            parameter.copy_(kept + score.step(rho) * g["visual_projection.weight"])
            v, t = encode_pairs(clip, pairs)
            cosines.append(float((v * t).sum(-1).mean()))
            parameter.copy_(kept)
    assert cosines[0] > cosines[1] > cosines[2]


# -- layers ------------------------------------------------------------------------------------------------------------


def test_importance_and_alignment_are_the_formulas() -> None:
    theta, f, r = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 1.0]])
    scores = layer_scores({"a": theta, "b": theta}, {"a": f, "b": 0 * f}, {"a": r, "b": r})
    assert set(scores) == {"a"}, "a tensor that the forget loss does not see is no candidate"
    assert scores["a"].importance == pytest.approx(1 / 5)
    assert scores["a"].alignment == pytest.approx(1 / math.sqrt(2))
    assert scores["a"].step(0.1) == pytest.approx(0.5)
    assert float(scores["a"].step(0.1) * f.norm() / theta.norm()) == pytest.approx(0.1), "rho is the relative change"


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    broken = torch.tensor([[float("nan"), 1.0]])
    with pytest.raises(DataError, match=r"\bw_one\b"):
        layer_scores({"w_one": torch.ones(1, 2)}, {"w_one": broken}, {"w_one": torch.ones(1, 2)})


def test_the_front_is_the_double_loops_also_with_ties() -> None:
    rng = random.Random(0)
    for _ in range(500):
        points = [LayerScore(str(k), rng.randint(1, 6), rng.randint(1, 6), 1, 1) for k in range(rng.randint(1, 12))]
        direct = {
            p.name for p in points if not any(q.alignment < p.alignment and q.importance > p.importance for q in points)
        }
        front = pareto_front(points)
        assert {p.name for p in front} == direct
        assert [p.alignment for p in front] == sorted((p.alignment for p in front), reverse=True)


def test_candidates_of_a_full_vit_b_32_are_counted_as_in_open_clip() -> None:
    """76 vision and 74 language tensors under open_clip's names; here q, k and v stand apart: 2 more for each of 12
    blocks."""
    from transformers import CLIPConfig, CLIPModel

    class Shapes:
        name = "ViT-B-32"

        def __init__(self) -> None:
            with torch.device("meta"):
                model = CLIPModel(CLIPConfig())
            self.components = {
                "text_encoder": model.text_model,
                "vision_model": model.vision_model,
                "text_projection": model.text_projection,
                "visual_projection": model.visual_projection,
            }

        def reads(self, parameter: str) -> bool:
            return True

    shapes: Any = Shapes()
    assert len(candidates(shapes, shapes, "vision", EXCLUDE)) == 76 + 24
    assert len(candidates(shapes, shapes, "language", EXCLUDE)) == 74 + 24
    assert not any("bias" in name or "position" in name for name in candidates(shapes, shapes, "both", EXCLUDE))
    for which, count in (("vision", 76), ("language", 74)):
        found = candidates(shapes, shapes, which, EXCLUDE)
        assert len(grouped(found, found, ["in_proj"])) == count


LAYER = "vision_model.encoder.layers"


def test_in_proj_is_scored_as_open_clips_tensor(clip: ClipModel) -> None:
    names = [f"{LAYER}.1.self_attn.{part}_proj.weight" for part in "qkv"]
    parameters = select(clip, [*names, f"{LAYER}.1.mlp.fc1.weight"])
    generator = torch.Generator().manual_seed(0)
    f, r = ({name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()} for _ in range(2))
    alone, joint = (
        layer_scores(parameters, f, r, grouped(parameters, parameters, compat)) for compat in ((), ["in_proj"])
    )
    assert alone.keys() == parameters.keys(), "control"
    name = f"{LAYER}.1.self_attn.in_proj.weight"
    assert joint.keys() == {name, f"{LAYER}.1.mlp.fc1.weight"}
    fused = [pack(each, open_clip_map(names))["visual.transformer.resblocks.1.attn.in_proj_weight"].double().flatten()
             for each in ({n: parameters[n].detach() for n in names}, {n: f[n] for n in names}, {n: r[n] for n in names})]  # fmt: skip
    theta, g_f, g_r = fused
    assert joint[name].importance == pytest.approx(float(g_f.norm() / theta.norm()))
    assert joint[name].alignment == pytest.approx(float(torch.cosine_similarity(g_f, g_r, dim=0).abs()))
    assert joint[f"{LAYER}.1.mlp.fc1.weight"] == alone[f"{LAYER}.1.mlp.fc1.weight"]


def test_the_deepest_of_a_front_is_the_released_choice() -> None:
    def score(name: str, alignment: float) -> LayerScore:
        return LayerScore(name, 1.0, alignment, 1.0, 1.0)

    front = [score("visual_projection.weight", 0.9), score(f"{LAYER}.2.a", 0.8), score(f"{LAYER}.10.b", 0.5)]
    assert deepest([*front, score(f"{LAYER}.10.c", 0.1)])[0].name == f"{LAYER}.10.b", "of one block the more aligned"
    with pytest.raises(EditError, match=r"layers\.names"):
        deepest([front[0], score(f"{LAYER}.0.a", 0.2)])


@pytest.mark.parametrize(
    ("compat", "named", "moved"),
    [
        ([], "self_attn.v_proj", ["self_attn.v_proj"]),
        (["siblings"], "self_attn.v_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        (["siblings"], "mlp.fc2", ["mlp.fc1", "mlp.fc2"]),
        (["siblings"], "self_attn.out_proj", ["self_attn.out_proj"]),
        (["in_proj"], "self_attn.v_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ],
)
def test_what_moves_together_moves_by_one_lambda(
    compat: list[str], named: str, moved: list[str], clip: ClipModel, tmp_path: Path
) -> None:
    layers = {"names": [f"{LAYER}.2.{named}.weight"], "compat": compat}
    sets = {"n_forget": 16, "n_retain": 16, "per_class": 1}
    search: dict[str, Any] = {"margin": 1.0, "target": 0.5, "rho_max": 60.0, "steps": 6}
    work = method(["star"], layers=layers, data=sets, gradients={"precondition": None}, search=search)
    work.model = clip
    run = RunDirectory(tmp_path)
    edit = work.find_edit(run)
    assert set(edit.parameters) == {f"{LAYER}.2.{name}.weight" for name in moved}
    told = json.loads((tmp_path / "slug_star.json").read_text())
    g, _ = gradients(clip, work_pairs(work), select(clip, edit.parameters), "cosine", work.config.gradients)
    for name, shift in edit.shifts.items():
        assert torch.allclose(shift, told["lambda"] * g[name], rtol=1e-3, atol=1e-6), name
    scored = edit.parameters if compat == ["in_proj"] else [f"{LAYER}.2.{named}.weight"]
    theta, change = (
        math.sqrt(sum(float(each[name].detach().square().sum()) for name in scored))
        for each in (select(clip, scored), edit.shifts)
    )
    assert change / theta == pytest.approx(told["rho"], rel=1e-4), "rho is the change of what was scored"


def work_pairs(work: SingleLayerUnlearningGradientAlgorithm) -> Any:
    return SingleLayerUnlearningGradientDataHandler(work.config).forget_pairs(work.config.concepts[0])


def test_norms_are_left_out_by_a_switch(clip: ClipModel) -> None:
    names = {}
    for compat in ([], ["no_norms"]):
        work = method(["star"], layers={"exclude": EXCLUDE, "compat": compat})
        work.model = work.clip = clip
        names[tuple(compat)] = set(work._candidates())
    gone = names[()] - names["no_norms",]
    assert {name.split(".")[-2] for name in gone} == {
        "layer_norm1", "layer_norm2", "pre_layrnorm", "post_layernorm", "final_layer_norm", "patch_embedding"
    }  # fmt: skip
    assert not names["no_norms",] - names[()]


def test_what_the_model_does_not_read_is_no_candidate(clip: ClipModel, tiny_xl: Any) -> None:
    """A change there would do nothing and pass for a success: Stable Diffusion has no projections, LLaVA-1.5 stops one
    layer early."""
    diffusion, vlm = mu.load("canvas", device="cpu"), mu.load("canvas-vlm", device="cpu")
    language = candidates(diffusion, clip, "both", EXCLUDE)
    assert language
    assert all(name.startswith("text_encoder.") for name in language)
    for layer, read in ((-1, {"0", "1", "2", "3"}), (-2, {"0", "1", "2"})):
        vlm.model.config.vision_feature_layer = layer
        vision = candidates(vlm, clip, "both", EXCLUDE)
        assert {name.split(".")[3] for name in vision if "layers" in name} == read
    assert "vision_model.encoder.layers.3.mlp.fc1.weight" in candidates(clip, clip, "vision", EXCLUDE), "control"
    skipping = mu.load("canvas", device="cpu", clip_skip=2)
    assert not any("layers.2" in name for name in candidates(skipping, clip, "language", EXCLUDE))
    with pytest.raises(ModelError, match=r"(?=.*'canvas-clip')(?=.*vision).*'canvas'"):
        candidates(diffusion, clip, "vision", EXCLUDE)
    with pytest.raises(ModelError, match=r"(?=.*'tiny-xl').*'canvas-clip'"):
        candidates(tiny_xl, clip, "language", EXCLUDE)


def test_the_compat_presets_take_what_the_released_programs_took(clip: ClipModel) -> None:
    """Of a vision front in two blocks: the deepest with its siblings and no norm, or the fused tensor of open_clip."""

    def directions(preset: str, **overrides: Any) -> dict[str, Any]:
        presets = SingleLayerUnlearningGradientAlgorithm.presets
        settings = {"model": "canvas-clip", "clip": None, "data": {"forget": "canvas", "retain": "canvas"}}
        small = {"data": {"n_forget": 20, "n_retain": 20, "tasks": ["canvas"], "per_class": 1}, "concepts": ["star"]}
        work = SingleLayerUnlearningGradientAlgorithm(presets[preset].merged(settings, small, overrides), model=clip)
        work.load_model()
        data = SingleLayerUnlearningGradientDataHandler(work.config)
        ((scores, found),) = work._scored(data, data.targets()[0], work._candidates())
        assert set(found) <= set(scores)
        return found

    hugging_face = directions("llava-released")
    (name,) = hugging_face
    block = name.split(".layers.")[1].split(".")[0]
    assert block != "0" and {each.split(".layers.")[1].split(".")[0] for each in hugging_face[name]} == {block}
    assert not any("norm" in each for each in hugging_face)
    usual = directions("llava")
    assert len(usual) > 1 and all(list(moved) == [name] for name, moved in usual.items()), "control"
    fused = [name for name in directions("clip-released") if "self_attn" in name]
    assert fused and all("in_proj" in name or "out_proj" in name for name in fused)


# -- search ------------------------------------------------------------------------------------------------------------


def replay(outcomes: Sequence[int]) -> tuple[list[float], Callable[[Sequence[float]], list[bool]]]:
    seen: list[float] = []

    def gone(rhos: Sequence[float]) -> list[bool]:
        seen.extend(rhos)
        return [bool(outcomes[len(seen) - 1])]

    return seen, gone


@pytest.mark.parametrize(
    ("start", "outcomes", "last"),
    [
        (0.0009054577667440894, [1, 1, 0, 0, 0, 1, 0, 1, 1, 1], 0.0004120540227565875),
        (0.08044360078484877, [0, 1, 1, 0, 1, 0, 1, 0, 0, 1], 0.10778185573907473),
    ],
)
def test_the_reference_search_takes_the_printed_steps(start: float, outcomes: list[int], last: float) -> None:
    seen, gone = replay(outcomes)
    bisect(gone, start)
    assert len(seen) == 10
    assert seen[-1] == pytest.approx(last, rel=1e-12)


def test_the_searches_find_the_smallest_step_that_forgets() -> None:
    settings, calls = SearchConfig(), []

    def after(threshold: float) -> Callable[[Sequence[float]], list[bool]]:
        def gone(rhos: Sequence[float]) -> list[bool]:
            calls.append(len(rhos))
            return [rho >= threshold for rho in rhos]

        return gone

    for threshold in (0.01, 0.3, 2.0):
        found = grid(after(threshold), settings)
        assert found is not None
        assert threshold <= found <= 1.12 * threshold
        by_halves = bisect(after(threshold))
        assert by_halves is not None
        assert threshold <= by_halves
    assert calls[:2] == [16, 7], "two batches"
    assert grid(after(9.0), settings) is None
    assert bisect(after(1e9)) is None


def test_the_grid_takes_the_first_crossing_of_a_curve_that_comes_back() -> None:
    found = grid(lambda rhos: [0.1 <= rho <= 0.2 or rho > 3 for rho in rhos], SearchConfig())
    assert found is not None
    assert found < 0.2


def test_nothing_forgets_is_a_loud_error(clip: ClipModel) -> None:
    with pytest.raises(EditError, match=r"fa1.*search\.rho_max"):
        method(["star"], search={"rho_max": 0.005, "steps": 2}).find_edit()
    with pytest.raises(EditError, match=r"search\.retained"):
        Told(w=(0.5, 0.5)).best(retained=0.9)


class Told(Probe):
    """Of each tensor, the share of two tasks' hundred images that it keeps. ``looked`` tells how many were asked
    about."""

    def __init__(self, base: tuple[float, float] = (1.0, 1.0), rho: Sequence[float] = (), **kept: tuple[float, float]):
        tasks = [ZeroShot(name, ("gone", "stays"), ("{}",), [], (0,) * 4 + (1,) * 100) for name in ("one", "two")]
        super().__init__(Target("gone", tasks[0], 0), [tasks[0], replace(tasks[1], beyond=frozenset({0}))])
        self.kept, self.looked = kept, dict.fromkeys(kept, 0)
        self.untouched = Outcome(1.0, 1.0, dict(zip(("one", "two"), base, strict=True)))
        rhos = dict(zip(kept, rho or [1.0] * len(kept), strict=True))
        self.curves = [
            Curve(LayerScore(name, 1.0, 0.0, 3.0, 1.0), [each], [0.0], each, Outcome(0.0, 0.0, {}))
            for name, each in rhos.items()
        ]
        # lambda: rho times the tensor's norm over the gradient's
        self.steps = {name: 3.0 * each for name, each in rhos.items()}
        self.directions = {name: {name: torch.full((1,), float(k))} for k, name in enumerate(kept)}

    def scores(self, rows: Rows) -> dict[str, Tensor]:
        raise AssertionError("the race asks about changed tensors alone")

    def scores_along(self, name: str, along: Direction, steps: Sequence[float], rows: Rows) -> list[dict[str, Tensor]]:
        assert steps == [self.steps[name]]
        assert along is self.directions[name]
        self.looked[name] += sum(map(len, rows.values()))
        found = {}
        for task, share in zip(("one", "two"), self.kept[name], strict=True):
            if task in rows:
                assert rows[task].min() >= 4, "what is forgotten is no part of what stays"
                right = (torch.arange(104) * 37 % 100 < round(100 * share)).float()[rows[task] - 4]
                found[task] = torch.stack([0.5 - right, right - 0.5], dim=1)
        return [found]

    def best(self, **settings: Any) -> Curve:
        return best(self, self.curves, self.directions, self.untouched, SearchConfig(**settings))


def test_what_one_task_gains_does_not_make_up_for_what_another_loses() -> None:
    chosen = Told((0.90, 1.0), a=(1.00, 0.95), b=(0.90, 0.97)).best()
    assert chosen.score.name == "b"
    assert chosen.outcome is not None
    assert chosen.outcome.retained == pytest.approx({"one": 0.90, "two": 0.97})
    assert Told(rho=(2.0, 1.0), a=(0.9, 1.0), b=(0.9, 1.0)).best().chosen == 1.0, "among equals the smaller step"


def test_the_best_tensor_is_found_without_looking_at_all_that_the_others_keep() -> None:
    """Against all shares of all tensors: the same choice, and what lost early was hardly looked at."""
    rng = random.Random(3)
    for _ in range(30):
        shares = {name: (rng.randint(60, 100) / 100, rng.randint(60, 100) / 100) for name in "abcd"}
        probe = Told(**shares)
        chosen = probe.best()
        assert sum(shares[chosen.score.name]) == max(map(sum, shares.values()))
        assert probe.looked[chosen.score.name] == 200, "what is told of it is told of all pictures"
        assert chosen.seen == 1.0
        assert chosen.outcome is not None
        assert list(chosen.outcome.retained.values()) == pytest.approx(shares[chosen.score.name])
    clear = Told(a=(0.5, 0.6), b=(0.7, 0.5), c=(1.0, 1.0))
    assert clear.best().score.name == "c"
    assert (clear.looked["c"], clear.looked["a"] <= 35, clear.looked["b"] <= 35) == (200, True, True)
    level = Told(a=(0.9, 0.9), b=(0.9, 0.9))
    level.best()
    assert min(level.looked.values()) > 150, "control: where nothing parts them all must be seen"


def test_the_grid_looks_no_further_than_it_must() -> None:
    """Where every look costs images, steps beyond the first that forgets are not drawn."""
    seen: list[float] = []

    def gone(rhos: Sequence[float]) -> list[bool]:
        seen.extend(rhos)
        return [rho >= 0.05 for rho in rhos]

    found, all_at_once = (
        grid(gone, SearchConfig(), at_once=2),
        grid(lambda rhos: [rho >= 0.05 for rho in rhos], SearchConfig()),
    )
    assert found == all_at_once
    assert max(seen) < 0.15
    assert len(seen) < 16


@pytest.mark.parametrize("keep_bytes", [2**30, 0])
def test_a_probes_outcomes_are_those_of_the_changed_model(keep_bytes: int, clip: ClipModel, monkeypatch) -> None:
    """The cached path against classifying anew with the tensor changed."""
    tasks = canvas_tasks(2, 7)
    probe = ClipProbe(clip, target_of("star", tasks), tasks, keep_bytes=keep_bytes)
    probe.prepare(["vision_model.encoder.layers.2.mlp.fc1.weight", "text_encoder.encoder.layers.0.mlp.fc2.weight"])
    base = probe.base()
    assert base == probe.now()
    assert base.fa1 == 1.0
    assert min(base.retained.values()) > 0.9
    for name in (
        "vision_model.encoder.layers.1.mlp.fc1.weight",
        "vision_model.encoder.layers.2.mlp.fc1.weight",  # goes on from the stage before
        "vision_model.encoder.layers.0.mlp.fc1.weight",  # and back
        "text_encoder.encoder.layers.0.mlp.fc2.weight",
    ):
        parameter = find_parameter(clip, name)
        kept = parameter.detach().clone()
        shift = torch.randn(kept.shape, generator=torch.Generator().manual_seed(1)) * 4 * kept.std()
        along = {name: shift}
        found = probe.look(name, along, [0.5, 2.0])
        for step, seen in zip([0.5, 2.0], found, strict=True):
            with torch.no_grad():
                parameter.copy_(kept + step * shift)
            assert probe.now() == seen
            with torch.no_grad():
                parameter.copy_(kept)
        assert probe.look(name, along, [2.0], forget_only=True)[0].fa1 == found[1].fa1
        tally = Tally(probe.target, tasks)
        for rows in probe.portions(name):
            tally.add(probe.scores_along(name, along, [2.0], rows)[0], rows)
        assert tally.outcome().retained == tally.outcome(at_best=True).retained == found[1].retained
        assert found[1] != base, "control: the step matters"

    begun: list[int] = []
    run = Tower.run
    monkeypatch.setattr(
        Tower, "run", lambda tower, hidden, start, stop: begun.append(start) or run(tower, hidden, start, stop)
    )
    name = "vision_model.encoder.layers.2.mlp.fc1.weight"
    probe.look(name, {name: torch.zeros_like(find_parameter(clip, name))}, [1.0])
    assert min(begun) == (3 if keep_bytes else 0), "what it was told of goes on from where the untouched model was"


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("concept", "kind"), [("Ada Stone", "identity"), ("star", "object"), ("neon", "style")])
def test_the_concept_goes_from_clip_and_the_rest_stays_on_other_images(
    concept: str, kind: str, clip: ClipModel
) -> None:
    edit = method([concept]).find_edit()
    assert len(edit.parameters) == 1
    tasks = canvas_tasks(3, 12_345)
    probe = ClipProbe(clip, target_of(concept, tasks), tasks)
    before = probe.now()
    with edit.applied(clip):
        after = probe.now()
    assert probe.now() == before
    assert before.fa1 >= 0.9, "control: it was there"
    assert after.fa1 <= 0.35
    assert after.utility >= before.utility - 0.1


def test_several_concepts_take_one_tensor_each_and_go_together(
    clip: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = method(["Ada Stone", "neon"])
    rendered: list[RenderedPair] = []
    image = RenderedPair.image
    monkeypatch.setattr(RenderedPair, "image", lambda pair: rendered.append(pair) or image(pair))
    edit = found.find_edit()
    searched = [p for task in SingleLayerUnlearningGradientDataHandler(found.config).tasks() for p in task.images]
    assert [rendered.count(each) for each in searched] == [1] * len(searched), (
        "once, for both concepts and for both together"
    )
    tasks = canvas_tasks(2, 3)
    with edit.applied(clip):
        assert all(
            ClipProbe(clip, target_of(concept, tasks), tasks).now().fa1 <= 0.5 for concept in ("Ada Stone", "neon")
        )
    assert [part.info.concepts for part in found.parts] == [("Ada Stone",), ("neon",)]
    assert all(len(part.parameters) == 1 for part in found.parts)


def test_shifts_of_one_tensor_add_up_and_the_joint_factor_is_the_smallest_that_does() -> None:
    one, two = torch.ones(2), torch.full((2,), 2.0)
    total = summed([{"w": one}, {"w": two, "v": one}])
    assert torch.equal(total["w"], 3 * one)
    assert torch.equal(total["v"], one)
    assert joint_factor(total, lambda tried: [0.0 if float(tried["w"][0]) >= 3.7 else 1.0], 0.0) == 1.25
    with pytest.raises(EditError, match=r"0\.00, 0\.50"):
        joint_factor(total, lambda tried: [0.0, 0.5], 0.0)


def test_what_is_erased_together_does_not_count_as_retained() -> None:
    """Of four people two go. The third is seen in one of two images, the fourth in both; the second in none."""
    config = method(["Ada Stone", "ada rivers", "neon"]).config
    targets, tasks = SingleLayerUnlearningGradientDataHandler(config).targets()
    gone = {name: {task.classes[label] for label in task.beyond} for task in tasks for name in [task.name]}
    assert gone == {"style": {"neon"}, "object": set(), "identity": {"Ada Stone", "Ada Rivers"}}
    assert [any(target.task is task for task in tasks) for target in targets] == [True] * 3

    labels = (0, 0, 1, 1, 2, 2, 3, 3)
    people = ZeroShot("identity", ("a", "b", "c", "d"), ("{}",), [], labels, beyond=frozenset({0, 1}))
    alone = replace(people, beyond=frozenset({0}))
    unmarked = replace(people, beyond=frozenset())
    seen, rows = torch.eye(4)[torch.tensor([1, 1, 0, 0, 2, 3, 3, 3])], torch.arange(8)

    def retained(task: ZeroShot, seen: Tensor = seen) -> float:
        return (
            Tally(Target("a", task, 0), [task])
            .add({"identity": seen}, {"identity": rows})
            .outcome()
            .retained["identity"]
        )

    assert retained(people) == pytest.approx((0.5 + 1) / 2)
    assert retained(alone) == retained(unmarked) == pytest.approx((0 + 0.5 + 1) / 3), "one concept on its own: as ever"
    assert retained(people, torch.ones(8, 4)) == 0.25, "who says the same of all people knows none of them"


def test_what_is_drawn_leaves_out_the_other_concepts() -> None:
    settings = ImagesConfig(forget=3, retained=2)
    plain = ZeroShot("identity", ("a", "b", "c"), ("{}",), [], (0, 1, 2))
    for task, labels in ((plain, (0, 0, 1, 1, 1, 2, 2)), (replace(plain, beyond=frozenset({0, 1})), (1, 1, 1, 2, 2))):
        assert _drawn(task, Target("b", task, 1), settings).labels == labels
    assert _drawn(replace(plain, beyond=frozenset({0})), Target("other", plain, 0), settings).labels == (1, 1, 2, 2)


def test_together_the_concepts_must_leave_as_much_as_one_alone(clip: ClipModel, caplog) -> None:
    class Together(Seen):
        def now(self, *, forget_only: bool = False) -> Outcome:
            return Outcome(0.0, 0.0, {"rest": 0.4})

        def base(self) -> Outcome:
            return Outcome(1.0, 1.0, {"rest": 0.8})

    def joint(retained: float) -> float:
        work = method(["Ada Stone", "neon"], search={"retained": retained})
        work.model = work.clip = clip
        return work._joint([Together(0, 0), Together(0, 0)], {})

    with caplog.at_level("INFO", "mu"):
        assert joint(0.5) == 1.0
    assert "0.800" in caplog.text and "0.400" in caplog.text
    with pytest.raises(EditError, match=r"60%.* 50\.0%.*search\.retained"):
        joint(0.6)


@pytest.mark.parametrize(("task", "attribute"), [("identity", "identity"), ("style", "style"), ("imagenet", "object")])
def test_a_vision_language_model_is_asked_a_few_at_a_time_what_it_is_asked_elsewhere(
    task: str, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, opened, asked = mu.load("canvas-vlm", device="cpu"), [], []

    class Shown:
        def __init__(self, k: int):
            self.k = k

        def image(self) -> Any:
            opened.append(self.k)
            return self

    def answer(images: list, questions: list[str], batch_size: int) -> list[str]:
        asked.append((len(images), len(opened), batch_size))
        assert set(questions) == {QUESTIONS[attribute][0]} and len(questions) == len(images)
        return [f"it is {'AB'[each.k % 2]}." for each in images]

    monkeypatch.setattr(model, "answer", answer)
    shown: Any = [Shown(k) for k in range(5)]
    people = ZeroShot(task, ("a", "b"), ("{}",), shown, (0, 1, 0, 0, 0))
    probe = AnswerProbe(model, Target("a", people, 0), [people])  # type: ignore[arg-type]
    monkeypatch.setattr(AnswerProbe, "rows_at_once", 2)
    assert probe.scores_of(people, torch.arange(5)).argmax(dim=1).tolist() == [0, 1, 0, 1, 0]
    assert asked == [(2, 2, 2), (2, 4, 2), (1, 5, 1)], "each batch is opened when its turn comes"
    assert (probe.base().fa1, probe.base().retained) == (0.75, {task: 1.0})
    monkeypatch.setattr(model, "answer", lambda images, *_, **__: ["a, or B"] * len(images))
    assert probe.base().fa1 == 1.0, "the right name is there, as the suite counts it"


@pytest.mark.parametrize("model", ["canvas", "canvas-vlm"])
def test_the_search_looks_at_what_the_model_gives_out(
    model: str, monkeypatch: pytest.MonkeyPatch, snapshot: Any
) -> None:
    """Images of the diffusion model, answers of the vision-language model: of the base, of steps, of the one that is
    taken. They decide, the CLIP does not; the base is left bit for bit."""
    loaded: Any = mu.load(model, device="cpu")
    chosen = SingleLayerUnlearningGradientAlgorithm
    settings: dict[str, Any] = {
        "search": {"on": "model", "steps": 4, "target": 0.5, "pictures": {"forget": 2, "retained": 1}},
        "data": {"per_class": 1},
        "layers": {"names": ["*layers.0.self_attn.out_proj.weight"]},
    }
    work = chosen(chosen.for_concepts(["Ada Stone"], model).merged(SMALL, settings), model=loaded)
    tower = "text_encoder" if model == "canvas" else "vision_model"
    theta = find_parameter(loaded, f"{tower}.encoder.layers.0.self_attn.out_proj.weight")
    base, kept, given = snapshot(loaded), theta.detach().clone(), list[Tensor]()

    def noting(give: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *words, **more: given.append(theta.detach().clone()) or give(*words, **more)

    if model == "canvas":
        monkeypatch.setattr(probes, "generate", noting(probes.generate))
    else:
        monkeypatch.setattr(loaded, "answer", noting(loaded.answer))
    edit = work.find_edit()
    assert snapshot(loaded) == base
    assert edit.info.base == model
    (shift,) = edit.shifts.values()
    assert torch.equal(given[0], kept), "first the base"
    assert any(torch.equal(each, kept + shift) for each in given), "what is taken was looked at"
    assert len({float((each - kept).norm()) for each in given}) >= 3, "and other steps"

    (target,), tasks = SingleLayerUnlearningGradientDataHandler(work.config).targets()
    probe = work._probe(target, tasks)
    before = probe.now(forget_only=True)
    with edit.applied(loaded):
        after = probe.now(forget_only=True)
    assert (before.fa1, after.fa1 <= 0.5) == (1.0, True)

    given.clear()
    on_clip = chosen(work.config.merged({"search": {"on": "clip"}}), model=loaded).find_edit()
    assert not given, "control: where the CLIP decides nothing is drawn or asked"
    assert not torch.equal(next(iter(on_clip.shifts.values())), shift), "and it decides otherwise"


@pytest.mark.parametrize(
    ("concept", "overrides", "error", "said"),
    [
        ("Nobody Here", {}, ConfigError, "'Nobody Here'"),
        ("star", {"layers": {"names": ["*no.such*"]}}, EditError, r"'\*no\.such\*'"),
        (
            "star",
            {"layers": {"tower": "language", "names": ["visual_projection.weight"]}},
            ConfigError,
            r"layers\.names",
        ),
        ("star", {"data": {"n_forget": 1}}, DataError, r"'star'.*\b1\b"),
        ("star", {"search": {"target": 1.0}}, EditError, r"'star'.*\b1\.00\b"),
        ("star", {"data": {"n_retain": 8}}, DataError, r"\b8\b.*\b16\b"),
        ("star", {"data": {"tasks": ["celeb"]}}, ConfigError, "'celeb'.*imagenet:FOLDER"),
        ("star", {"data": {"forget": "no/such.tar"}}, DataError, "no/such.tar"),
    ],
)
def test_bad_settings_are_one_clear_line(concept: str, overrides: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        method([concept], **overrides).find_edit()
    assert "\n" not in str(caught.value)


def test_a_model_without_its_clip_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=tiny.name):
        SingleLayerUnlearningGradientAlgorithm(SlugConfig(concepts=["star"]), model=tiny).find_edit()


# -- preconditioning ---------------------------------------------------------------------------------------------------


def test_a_second_moment_is_that_of_the_layers_inputs(clip: ClipModel) -> None:
    """Over all tokens; of images, whatever the chunks."""
    pairs, name = rendered_pairs(6, 5), "text_encoder.encoder.layers.1.mlp.fc1.weight"
    inputs: list[Tensor] = []
    hook = find_module(clip, name).register_forward_hook(
        lambda _layer, x, _y: inputs.append(x[0].flatten(0, 1).double())
    )
    encode_pairs(clip, pairs)
    hook.remove()
    expected = inputs[0].T @ inputs[0] / len(inputs[0])
    found = second_moments(clip, pairs, [name, "text_encoder.encoder.layers.1.layer_norm1.weight"])
    assert found.keys() == {name}, "a norm is no linear layer"
    assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-4)
    seen = "vision_model.encoder.layers.1.mlp.fc1.weight"
    whole, parts = (second_moments(clip, pairs, [seen], chunk)[seen] for chunk in (6, 4))
    assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-4)
    assert not find_module(clip, name)._forward_hooks


def test_the_preconditioned_direction_disturbs_the_retained_least() -> None:
    """Per unit of first-order effect on the forget loss, the layer's retained outputs change less than along any other
    direction."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(5, 7, generator=generator, dtype=torch.double)
    x = torch.randn(50, 7, generator=generator, dtype=torch.double) * torch.tensor([9.0, 3, 1, 1, 0.3, 0.3, 0.1])
    C, eps = x.T @ x / 50, 0.01

    def cost(D: Tensor) -> float:
        damped = C + eps * C.diagonal().mean() * torch.eye(7)
        return float((D @ damped @ D.T).trace() / (g * D).sum() ** 2)

    D = preconditioned({"w": g, "b": g[0]}, {"w": C}, eps)
    assert torch.equal(D["b"], g[0])
    assert D["w"].norm() == pytest.approx(float(g.norm()))
    others = [g, *(D["w"] + 0.1 * torch.randn(5, 7, generator=generator, dtype=torch.double) for _ in range(20))]
    assert all(cost(D["w"]) < cost(other) for other in others)
    assert cost(D["w"]) < 0.5 * cost(g), "control: it is another direction"


def test_a_retain_gradient_without_its_images_gives_the_plain_step_and_says_so(
    clip: ClipModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "retain.safetensors"
    method(["star"]).save_gradients("retain", file)
    told = "gradients.precondition has no effect: data.retain is a gradient file"

    def found(source: str, precondition: float | None) -> tuple[dict[str, Tensor], Any, int]:
        work = method(["star"], gradients={"precondition": precondition}, data={"retain": source})
        work.model = clip
        run = RunDirectory(tmp_path / f"{Path(source).stem}-{precondition}")
        run.folder.mkdir()
        caplog.clear()
        shifts = work.find_edit(run).shifts
        record = json.loads((run.folder / "slug_star.json").read_text())
        return dict(shifts), record["precondition"], sum(told in line for line in caplog.messages)

    (turned, damping, lines), (plain, none, silent) = found(str(file), 0.3), found(str(file), None)
    assert (damping, none, lines, silent) == (None, None, 1, 0)
    assert turned.keys() == plain.keys() and all(torch.equal(turned[name], plain[name]) for name in plain)
    (other, damping, lines) = found("canvas", 0.3)
    assert (damping, lines) == (0.3, 0), "control: with images"
    assert other.keys() != plain.keys() or not all(torch.equal(other[name], plain[name]) for name in plain)


def test_preconditioning_needs_a_linear_layer(clip: ClipModel) -> None:
    with pytest.raises(ConfigError, match=r"gradients\.precondition"):
        second_moments(clip, rendered_pairs(2, 5), ["text_encoder.final_layer_norm.weight"])


# -- what a search must not get wrong
# ----------------------------------------------------------------------------------------


class Seen(Probe):
    """A probe of a made-up curve: the concept is gone between two steps alone."""

    at_once = 16

    def __init__(self, low: float, high: float):
        task = ZeroShot("rest", ("gone", "stays"), ("{}",), [], (0, 1))
        super().__init__(Target("gone", task, 0), [task])
        self.low, self.high = low, high

    def scores(self, rows: Rows) -> dict[str, Tensor]:
        return self.scores_along("", {}, [0.0], rows)[0]

    def scores_along(self, name: str, along: Direction, steps: Sequence[float], rows: Rows) -> list[dict[str, Tensor]]:
        """Rows 0 and 1: the forgotten image and the one that stays, which is always right."""
        gone = [float(self.low <= step <= self.high) for step in steps]
        return [{"rest": torch.tensor([[0.5 - each, 0.0], [0.0, 1.0]])[rows["rest"]]} for each in gone]


def test_the_margin_does_not_bring_the_concept_back() -> None:
    score = LayerScore("w", 1.0, 0.0, 1.0, 1.0)  # lambda = rho
    wide, narrow = (
        search(Seen(0.1, high), score, {"w": torch.ones(1)}, SearchConfig(criterion="fa1", margin=3))
        for high in (9, 0.2)
    )
    assert wide.chosen == pytest.approx(0.3, rel=0.15), "control: where the curve stays down the margin counts"
    for curve in (wide, narrow):
        assert curve.outcome is not None
        assert curve.outcome.fa1 == 0
    assert narrow.chosen is not None
    assert 0.1 <= narrow.chosen <= 0.2


def test_a_concept_counts_once_however_it_is_spelt() -> None:
    config = SlugConfig.parse({"concepts": ["Ada Stone", "Boris  Vale", "ada_stone"]})
    assert config.concepts == ["Ada Stone", "Boris Vale"]
    with pytest.raises(DataError, match="concept"):
        SlugConfig.parse({"concepts": [" "]})
    with pytest.raises(ConfigError, match="rho_min"):
        SlugConfig.parse({"search": {"rho_min": 5, "rho_max": 0.05}})


def test_only_what_is_searched_is_kept_and_preconditioned(clip: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    moments = slug_algorithm.second_moments
    monkeypatch.setattr(slug_algorithm, "second_moments", lambda *words: asked.extend(words[2]) or moments(*words))
    work = method(["star"], data={"n_forget": 16, "n_retain": 16})
    work.model = clip
    work.load_model()
    data = SingleLayerUnlearningGradientDataHandler(work.config)
    targets, _ = data.targets()
    parameters = work._candidates()
    ((scores, directions),) = work._scored(data, targets, parameters)
    assert list(directions) == asked
    assert len(scores) > 20 > len(directions) == 4, "two of each tower's front, of all that were scored"


def test_preconditioning_changes_the_edit(clip: ClipModel) -> None:
    settings: Any = {"layers": {"names": ["text_encoder.encoder.layers.0.mlp.fc2.weight"]}, "search": {"rho_max": 8.0}}
    plain, turned = (
        method(["star"], gradients={"precondition": value}, **settings).find_edit() for value in (None, 0.3)
    )
    a, b = (edit.shifts[settings["layers"]["names"][0]].flatten() for edit in (plain, turned))
    assert torch.cosine_similarity(a, b, dim=0) < 0.9


def test_an_unsuitable_template_is_not_taken_for_an_erased_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same prompts' images of a plain field, and answers that name nobody."""
    chosen = SingleLayerUnlearningGradientAlgorithm
    settings: dict[str, Any] = {"data": {"n_forget": 16, "n_retain": 16, "per_class": 1}}
    settings["search"] = {"images": {"forget": 1, "retained": 1, "steps": 1, "templates": {"identity": ["fog, {}"]}}}
    layers = {"layers": {"names": ["*layers.0.self_attn.out_proj.weight"]}, "gradients": {"precondition": None}}

    def error(model: str, **patch: Any) -> str:
        loaded: Any = mu.load(model, device="cpu")
        for name, value in patch.items():
            monkeypatch.setattr(loaded if hasattr(loaded, name) else probes, name, value)
        with pytest.raises(EditError) as raised:
            chosen(chosen.for_concepts(["Ada Stone"], model).merged(SMALL, settings, layers), model=loaded).find_edit()
        assert "\n" not in str(raised.value)
        return str(raised.value)

    drawn = error("canvas", generate=lambda _m, prompts, _s, **_: torch.full((len(prompts), 3, 64, 64), 0.5))
    assert "'fog, Ada Stone'" in drawn and "search.images.templates" in drawn and "erased before" not in drawn
    said = error("canvas-vlm", answer=lambda images, *_, **__: ["a hill"] * len(images))
    assert QUESTIONS["identity"][0] in said and "search.on=clip" in said and "erased before" not in said
    with pytest.raises(EditError, match=r"'canvas-clip'.*erased before"):
        method(["star"], search={"target": 1.0}, data={"per_class": 1}, **layers).find_edit()


def test_a_judge_must_know_the_concepts_task() -> None:
    model = mu.load("canvas", device="cpu")
    chosen = SingleLayerUnlearningGradientAlgorithm
    config = chosen.for_concepts(["Ada Stone"], "canvas").merged(
        SMALL, {"search": {"pictures": {"judge": "canvas-judge"}}}
    )
    algorithm = chosen(config, model=model)
    algorithm.load_model()
    task = next(task for task in canvas_tasks(1, 3) if task.name == "identity")
    other = Target("Nobody", replace(task, name="breed"), 0)
    with pytest.raises(ConfigError, match="'breed'"):
        algorithm._probe(other, [other.task])
    algorithm._probe(target_of("Ada Stone", [task]), [task])  # control
