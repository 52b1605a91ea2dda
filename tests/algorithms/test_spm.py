"""SPM's equations against a slow direct computation, its cost, its draws, and runs that are interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor

from mu.algorithms.semipermeable_membrane.algorithm import SemipermeableMembraneAlgorithm
from mu.algorithms.semipermeable_membrane.configs import SemipermeableMembraneConfig
from mu.algorithms.semipermeable_membrane.data_handler import SemipermeableMembraneDataHandler, resolutions, shell
from mu.algorithms.semipermeable_membrane.model import SemipermeableMembraneModel
from mu.algorithms.semipermeable_membrane.trainer import SemipermeableMembraneTrainer, make_optimizer, warmup_steps
from mu.core.errors import ConfigError
from mu.edits.edit import EditInfo
from mu.edits.files import open_edit
from mu.edits.gates import FacilitatedTransport
from mu.edits.low_rank import LowRankEdit
from mu.models import load
from mu.models.diffusion import DiffusionModel
from mu.models.diffusion.schedulers import learning_rate_schedule
from mu.models.formats import architectures
from tests.conftest import family_member

FAST = {"train": {"iterations": 3, "max_denoising_steps": 4, "lr": 1e-2, "optimizer_type": "AdamW"}, "devices": "cpu"}


def settings(**overrides: Any) -> SemipermeableMembraneConfig:
    return SemipermeableMembraneConfig.parse(FAST).merged({"template_name": "neon style", **overrides})


class Bench:
    """One membrane with factors that are not zero, and its trainer."""

    def __init__(self, model: DiffusionModel, config: SemipermeableMembraneConfig):
        self.config, self.base = config, model
        self.data = SemipermeableMembraneDataHandler(config, model)
        draw = torch.Generator().manual_seed(5)
        self.model = SemipermeableMembraneModel(
            model, config.network.rank, config.network.alpha, draw, EditInfo("spm", ("a",))
        )
        for factors in self.model.edit.factors.values():
            factors.up.data = torch.randn(factors.up.shape, generator=draw) * 0.03
        self.trainer = SemipermeableMembraneTrainer(config, self.model, self.data)

    def step(self, seed: int = 0) -> tuple[dict[str, Tensor], list[Tensor]]:
        weights = self.model.edit.trainable()
        with self.model.trainable() as membrane:
            losses = self.trainer.step(membrane, torch.Generator().manual_seed(seed))
        return losses, list(torch.autograd.grad(losses["loss"], weights))


@contextmanager
def watched(model: DiffusionModel) -> Iterator[list[tuple[int, bool]]]:
    """(samples, with gradient) of each UNet evaluation inside the block."""
    seen: list[tuple[int, bool]] = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), torch.is_grad_enabled())))
    try:
        yield seen
    finally:
        handle.remove()


# -- the equations
# ----------------------------------------------------------------------------------------------------------


def reference_step(bench: Bench, seed: int, prediction: str = "epsilon") -> tuple[dict[str, Tensor], list[Tensor]]:
    """The released code's step in plain loops: every prediction a doubled batch, the unconditional half times 0.

    The same draws in the same order; in the space that the UNet predicts in.
    """
    entry, base, g = bench.config.entries()[0], bench.base, torch.Generator().manual_seed(seed)
    K, B, S = bench.config.train.max_denoising_steps, entry.batch_size or 1, entry.sampling_batch_size
    texts = (entry.target, entry.positive, entry.neutral, entry.unconditional)
    target, positive, neutral, uncond = (base.encode([str(text)]).sequence for text in texts)

    def predict(x: Tensor, t: Any, cond: Tensor, guidance: float) -> Tensor:
        both = torch.cat([uncond.repeat(len(x), 1, 1), cond.repeat(len(x) // len(cond), 1, 1)])
        un, con = base.unet(torch.cat([x, x]), t, both).sample.chunk(2)
        return un + guidance * (con - un)

    torch.randint(1, (1,), generator=g)  # which entry
    k = int(torch.randint(1, K, (1,), generator=g))
    torch.randint(1, (2,), generator=g)  # height and width
    size = (entry.resolution or base.default_size) // 8
    x = torch.stack([torch.randn(4, size, size, generator=g) for _ in range(B)])
    constants = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    scheduler = DDIMScheduler(**constants, prediction_type=prediction)
    scheduler.set_timesteps(K)
    x = x * scheduler.init_noise_sigma
    weights = bench.model.edit.trainable()
    with bench.model.trainable() as membrane:
        with torch.no_grad():
            for t in scheduler.timesteps[:k]:
                x = scheduler.step(predict(x, t, target, 3.0), t, x).prev_sample
            scheduler.set_timesteps(1000)
            t = scheduler.timesteps[math.floor(k * 1000 / K)]
            anchors = []
            while len(anchors) < S and entry.action == "erase_with_la":
                n = torch.randn(target.numel(), generator=g)
                n = n / n.norm()
                accepted = torch.rand(1, generator=g) < 1 - F.cosine_similarity(target.flatten(), n, dim=0)
                if accepted:
                    anchors.append((0.8 + 0.4 * torch.rand(1, generator=g)) * target.norm() * n)
            with membrane.off():
                e_pos, e_neu = predict(x, t, positive, 1.0), predict(x, t, neutral, 1.0)
        e_tar = predict(x, t, target, 1.0)
        erase = (e_tar - (e_neu - entry.guidance_scale * (e_pos - e_neu))).pow(2).mean()
        losses = {"loss": erase, "erase": erase}
        if anchors:
            several, rows = x.repeat(S // B, 1, 1, 1), torch.stack(anchors).reshape(S, *target.shape[1:])
            with torch.no_grad(), membrane.off():
                a_off = predict(several, t, rows, 1.0)
            anchoring = (predict(several, t, rows, 1.0) - a_off).pow(2).mean()
            losses = {"loss": erase + entry.la_strength * anchoring, "erase": erase, "anchoring": anchoring}
    return losses, list(torch.autograd.grad(losses["loss"], weights))


CASES: list[dict[str, Any]] = [
    {},
    {"prompt": {"action": "erase"}},
    {
        "prompt": {
            "guidance_scale": 3.0,
            "la_strength": 7.0,
            "neutral": "a photo",
            "unconditional": "blurry",
            "positive": "neon",
        }
    },
    {"prompt": {"batch_size": 2, "sampling_batch_size": 6}, "network": {"rank": 2, "alpha": 4.0}},
]


def close(found: tuple[dict[str, Tensor], list[Tensor]], wanted: tuple[dict[str, Tensor], list[Tensor]]) -> bool:
    losses = all(torch.allclose(found[0][name], wanted[0][name], rtol=1e-4, atol=1e-7) for name in wanted[0])
    scale = max(float(g.abs().max()) for g in wanted[1])
    return losses and all(torch.allclose(f, w, atol=1e-4 * scale) for f, w in zip(found[1], wanted[1], strict=True))


@pytest.mark.parametrize("overrides", CASES)
def test_a_step_is_the_references_step(overrides: dict[str, Any], tiny: DiffusionModel) -> None:
    bench = Bench(tiny, settings(**overrides))
    for seed in range(2):
        found, wanted = bench.step(seed), reference_step(bench, seed)
        assert found[0].keys() == wanted[0].keys()
        assert close(found, wanted)
    assert not close(bench.step(0), wanted)  # control: another draw
    bench.config.prompt.guidance_scale += 0.01
    wrong = reference_step(bench, 1)
    assert not close(found, wrong)  # control: eta wrong by 1 % or less


def test_v_prediction_is_trained_in_its_own_space(tiny_v: DiffusionModel) -> None:
    """The eps-space loss times 1 / alpha_bar is the v-space loss: eps = alpha v + sigma x at fixed x."""
    bench = Bench(tiny_v, settings(train={"max_denoising_steps": 4}))
    for seed in range(2):
        assert close(bench.step(seed), reference_step(bench, seed, "v_prediction"))
    assert tiny_v.native_weight(999) > 100
    assert tiny_v.native_weight(0) == pytest.approx(1, abs=1e-2)


def test_the_target_of_regression(tiny: DiffusionModel) -> None:
    """eta 1, neutral "": e_tar is pulled to 2 e_neu - e_pos; where positive equals neutral, to the neutral itself."""
    bench = Bench(tiny, settings(prompt={"action": "erase", "target": "neon"}))
    bench.data.entries[0].neutral = "neon"  # settings that say so are refused
    for factors in bench.model.edit.factors.values():
        factors.up.data.zero_()
    losses, gradients = bench.step()
    assert float(losses["loss"].detach()) < 1e-10  # nothing to erase
    other = Bench(tiny, settings(prompt={"action": "erase", "neutral": "a photo"}))
    assert float(other.step()[0]["loss"].detach()) > 1e-6
    assert max(float(g.abs().max()) for g in other.step()[1]) > 1e3 * max(float(g.abs().max()) for g in gradients)


def test_gradients_reach_the_adapters_alone(tiny: DiffusionModel, snapshot: Callable) -> None:
    before = snapshot(tiny)
    bench = Bench(tiny, settings())
    with bench.model.trainable() as membrane:
        losses = bench.trainer.step(membrane, torch.Generator().manual_seed(0))
    losses["loss"].backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in bench.model.edit.trainable())
    assert all(
        p.grad is None and not p.requires_grad for module in tiny.components.values() for p in module.parameters()
    )
    assert snapshot(tiny) == before


def test_a_probe_reads_adapters_in_training_with_their_gate(tiny: DiffusionModel) -> None:
    info = EditInfo("spm", ("star",), gate=FacilitatedTransport())
    draw = torch.Generator().manual_seed(5)
    model = SemipermeableMembraneModel(tiny, 1, 1.0, draw, info)
    for factors in model.edit.factors.values():
        factors.up.data = torch.randn(factors.up.shape, generator=draw) * 0.3
    x, cond = torch.randn(2, 4, 8, 8, generator=draw), tiny.encode(["a house", "a star"])

    def predict() -> Tensor:
        return tiny.predict_noise(x, torch.tensor([3, 700]), cond)

    with torch.no_grad():
        with model.finished().applied(tiny):
            used = predict()
        with model.trainable():
            whole = predict()
            with model.as_used():
                torch.testing.assert_close(predict(), used)
            assert torch.equal(predict(), whole), "it is in training again"
    assert (whole - used).abs().max() > 1e-3, "control: the gate keeps something back"


# -- the cost
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("B", "S", "K"), [(1, 4, 30), (2, 4, 6), (1, 1, 5)])
def test_model_evaluations_of_a_step(B: int, S: int, K: int, tiny: DiffusionModel) -> None:
    bench = Bench(tiny, settings(train={"max_denoising_steps": K}, prompt={"batch_size": B, "sampling_batch_size": S}))
    totals = []
    for seed in range(3):
        with watched(tiny) as seen:
            bench.step(seed)
        k = len(seen) - 2
        assert 1 <= k < K
        assert sum(n for n, _ in seen) == 2 * B * k + 3 * B + 2 * S
        assert [n for n, grad in seen if grad] == [B + S]
        totals.append(k)
    mean = sum(2 * B * k + 3 * B + 2 * S for k in range(1, K)) / (K - 1)
    if (B, S, K) == (1, 4, 30):
        assert len(set(totals)) > 1
        assert (mean, B + S) == (41, 5)


def test_the_reference_costs_more(tiny: DiffusionModel) -> None:
    """Control of the counter: 2Bk + 6B + 4S for the step as released."""
    bench = Bench(tiny, settings())
    with watched(tiny) as seen:
        reference_step(bench, 0)
    k = len(seen) - 5
    assert sum(n for n, _ in seen) == 2 * k + 6 + 4 * 4


# -- schedules and draws
# ----------------------------------------------------------------------------------------------------


def test_learning_rates_of_the_published_run() -> None:
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-4)
    schedule = learning_rate_schedule("cosine_with_restarts", optimizer, 3000, warmup=500, cycles=3)
    rates = []
    for _ in range(3000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    points = {0: 0, 250: 5e-5, 500: 1e-4, 916: 5e-5, 1333: 0, 1334: 1e-4, 2166: 0, 2167: 1e-4, 2999: 0}
    for i, wanted in points.items():
        assert rates[i] == pytest.approx(wanted, abs=2e-7), i
    for i in range(500, 3000, 37):
        part = (3 * (i - 500) / 2500) % 1
        assert rates[i] == pytest.approx(1e-4 * max(0, 0.5 * (1 + math.cos(math.pi * part))), abs=1e-9)


def test_the_warm_up_of_a_short_run_is_cut(tiny: DiffusionModel) -> None:
    train = settings().train
    assert warmup_steps(train.model_copy(update={"iterations": 2})) == 0
    assert warmup_steps(train.model_copy(update={"iterations": 100})) == 10
    assert warmup_steps(train.model_copy(update={"iterations": 3000})) == 500


def test_the_timestep_map(tiny: DiffusionModel) -> None:
    x = torch.zeros(1, 4, 8, 8)
    told = {}
    for kind in ("reference", "aligned"):
        walker = Bench(tiny, settings(train={"max_denoising_steps": 30, "timestep_map": kind})).trainer.walker
        told[kind] = [int(walker._unet_input(x, k)[1]) for k in (1, 15, 29)]
    assert told["reference"] == [966, 499, 33]
    assert told["aligned"] == [957 - 33 * k for k in (1, 15, 29)]


def test_resolutions(tiny: DiffusionModel) -> None:
    assert resolutions(512) == [256, 320, 384, 448]
    assert resolutions(768) == list(range(384, 768, 64))
    assert resolutions(1024) == list(range(512, 1024, 64))
    assert resolutions(64) == [64]
    data = SemipermeableMembraneDataHandler(settings(), tiny)
    entry = settings(prompt={"resolution": 512, "dynamic_resolution": True}).entries()[0]
    g = torch.Generator().manual_seed(0)
    drawn = [data.size(entry, g) for _ in range(200)]
    assert len(set(drawn)) == 16  # height and width independently
    assert data.size(settings().entries()[0], g) == (64, 64)
    with pytest.raises(ConfigError, match=r"prompt\.resolution.*\b8\b.*\b100\b"):
        data.size(settings(prompt={"resolution": 100}).entries()[0], g)


def test_anchors_lie_on_a_shell_around_the_targets_norm() -> None:
    target = torch.randn(1, 16, 192, generator=torch.Generator().manual_seed(0)) * 3
    rows = shell(target, 300, torch.Generator().manual_seed(1))
    ratio = rows.flatten(1).norm(dim=1) / target.norm()
    assert rows.shape == (300, 16, 192)
    assert 0.8 <= ratio.min() < 0.82 and 1.18 < ratio.max() < 1.2
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    cosines = F.cosine_similarity(rows.flatten(1), target.flatten(1))
    assert cosines.abs().max() < 6 / math.sqrt(target.numel())
    few = torch.tensor([[1.0, 0.0]])  # in two dimensions the rejection shows: density proportional to min(1, 1 - cos)
    cosines = F.cosine_similarity(shell(few, 3000, torch.Generator().manual_seed(2)), few)
    assert float(cosines.mean()) == pytest.approx(-math.pi / 4 / (math.pi - 1), abs=0.04)


@pytest.mark.parametrize(
    ("layout", "S"), [("paper", 4), ("paper+empty", 4), ("reference", 1), ("reference", 3), ("reference", 4)]
)
def test_anchor_layouts(layout: str, S: int, tiny: DiffusionModel) -> None:
    def rows(of: str) -> Tensor:
        config = settings(prompt={"anchor_layout": of, "sampling_batch_size": S, "unconditional": "blurry"})
        data = SemipermeableMembraneDataHandler(config, tiny)
        task = data.draw(torch.Generator().manual_seed(0))
        return task.anchors.draw(torch.Generator().manual_seed(1), task.unconditional).sequence

    u, a = tiny.encode(["blurry"]).sequence[0], rows("paper")
    wanted = {
        ("paper", 4): [*a],
        ("paper+empty", 4): [*a, u],
        ("reference", 1): [a[0]],
        ("reference", 3): [a[1], u, a[2]] if S == 3 else [],
        ("reference", 4): [u, a[2], u, a[3]] if S == 4 else [],
    }[layout, S]
    assert torch.equal(rows(layout), torch.stack(wanted))


def test_vocabulary_anchors_are_texts_that_share_nothing_with_the_target(tiny: DiffusionModel) -> None:
    config = settings(prompt={"anchors": "vocabulary", "anchor_alpha": 2.0})
    data = SemipermeableMembraneDataHandler(config, tiny)
    task = data.draw(torch.Generator().manual_seed(0))
    anchors = task.anchors
    assert anchors.pool is not None
    texts, weights = anchors.pool
    cosine = F.cosine_similarity(texts.sequence.flatten(1), task.target.sequence.flatten(1))
    assert torch.allclose(weights, (1 - cosine.abs()).clamp_min(1e-6) ** 2, atol=1e-6)
    assert len(anchors.draw(torch.Generator().manual_seed(0), task.unconditional)) == 4
    Bench(tiny, config).step()


def test_templates_are_put_around_target_and_positive(tiny: DiffusionModel) -> None:
    config = settings(prompt={"use_template": True, "templates": ["a photo of {}"], "positive": "neon"})
    data = SemipermeableMembraneDataHandler(config, tiny)
    task = data.draw(torch.Generator().manual_seed(0))
    assert torch.equal(task.target.sequence, tiny.encode(["a photo of neon style"]).sequence)
    assert torch.equal(task.positive.sequence, tiny.encode(["a photo of neon"]).sequence)
    assert torch.equal(task.neutral.sequence, tiny.encode([""]).sequence)
    both = settings(
        prompt={"use_template": True, "templates": ["a {} fish"], "neutral": "photo", "template_neutral": True}
    )
    drawn = SemipermeableMembraneDataHandler(both, tiny).draw(torch.Generator().manual_seed(0))
    assert torch.equal(drawn.neutral.sequence, tiny.encode(["a photo fish"]).sequence)
    plain = find(tiny, settings())
    assert not same(find(tiny, config), plain)
    assert same(find(tiny, settings()), plain)


def test_an_adapter_serves_several_targets(tiny: DiffusionModel) -> None:
    config = settings(prompts=[{"target": "star"}, {"target": "dog", "neutral": "cat"}])
    data = SemipermeableMembraneDataHandler(config, tiny)
    g = torch.Generator().manual_seed(0)
    drawn = [data.draw(g).entry.target for _ in range(200)]
    assert 70 < drawn.count("star") < 130
    edit = find(tiny, config)
    assert edit.info.concepts == ("star", "dog")
    assert not same(edit, find(tiny, settings(prompts=[{"target": "star"}])))


def test_reconsolidation_trains_towards_the_neutral_concept(tiny: DiffusionModel) -> None:
    """A few steps lower the distance of eps_M(target) to eps(neutral), more than training without that neutral does."""
    options = {"train": {"iterations": 20, "max_denoising_steps": 3, "lr": 3e-3, "lr_scheduler": "constant"}}
    quiet = {"action": "erase", "guidance_scale": 0.0, "target": "joker"}
    x, t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3)), 300
    joker, batman = (tiny.encode([text] * 4) for text in ("joker", "batman"))

    def distance(**prompt: str) -> float:
        with find(tiny, settings(**options, prompt=quiet | prompt)).applied(tiny), torch.no_grad():
            edited = tiny.predict_noise(x, t, joker)
        return float((edited - tiny.predict_noise(x, t, batman)).norm())

    before = float((tiny.predict_noise(x, t, joker) - tiny.predict_noise(x, t, batman)).norm())
    assert distance(neutral="batman") < 0.7 * before
    assert distance(neutral="a fish") > 0.9 * before  # control


# -- whole runs
# -------------------------------------------------------------------------------------------------------------


def find(model: DiffusionModel, config: SemipermeableMembraneConfig, **overrides: Any) -> LowRankEdit:
    return SemipermeableMembraneAlgorithm(config, model=model, **overrides).find_edit()


def same(a: LowRankEdit, b: LowRankEdit) -> bool:
    mine, theirs = a.tensors(), b.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "scheduler", ["ddim", *(pytest.param(s, marks=pytest.mark.slow) for s in ("ddpm", "lms", "euler_a"))]
)
def test_same_seed_same_edit(scheduler: str, tiny: DiffusionModel, snapshot: Callable) -> None:
    if scheduler == "lms" and not find_spec("scipy"):
        with pytest.raises(ConfigError, match="scipy"):
            find(tiny, settings(train={"noise_scheduler": scheduler}))
        return
    config, before = settings(train={"noise_scheduler": scheduler}), snapshot(tiny)
    torch.manual_seed(1)
    first = find(tiny, config)
    torch.manual_seed(2)
    assert same(find(tiny, config), first)
    assert not same(find(tiny, config, seed=1), first)
    assert snapshot(tiny) == before
    assert all(torch.isfinite(f.up).all() and f.up.abs().max() > 0 for f in first.factors.values())


@pytest.mark.parametrize(("precision", "scaled"), [("float32", False), ("bfloat16", False), ("float16", True)])
def test_float16_alone_scales_its_gradients(precision: str, scaled: bool, tiny_folder: Path, tmp_path: Path) -> None:
    half = load(tiny_folder, device="cpu", precision=precision)
    assert isinstance(half, DiffusionModel)
    bench, path = Bench(half, settings()), tmp_path / "training.pt"

    def stopped(i: int) -> None:
        raise KeyboardInterrupt

    bench.config.save.per_steps = 1
    with pytest.raises(KeyboardInterrupt):
        bench.trainer.train(torch.Generator().manual_seed(0), checkpoint=path, snapshot=stopped)
    assert ("scaler" in torch.load(path, weights_only=True)["state"]) == scaled
    assert all(f.up.dtype == torch.float32 and torch.isfinite(f.up).all() for f in bench.model.edit.factors.values())


WAYS = {
    "plain": {},
    "pool": {"latent_pool": 2},
    "trajectory": {"timesteps_per_trajectory": 3},
    "noisy walk": {"noise_scheduler": "euler_a"},
    "clipped": {"max_grad_norm": 1e-3, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 2},
}


@pytest.mark.parametrize(
    ("way", "when"),
    [
        pytest.param("plain", "before a checkpoint", marks=pytest.mark.slow),
        ("plain", "after a checkpoint"),
        pytest.param("plain", "in the update", marks=pytest.mark.slow),
        ("pool", "after a checkpoint"),
        pytest.param("trajectory", "before a checkpoint", marks=pytest.mark.slow),
        pytest.param("noisy walk", "before a checkpoint", marks=pytest.mark.slow),
        ("clipped", "in the update"),
    ],
)
def test_an_interrupted_run_ends_in_the_same_numbers(
    way: str, when: str, tiny: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the middle of a step, after it has drawn; the run and its losses are those of an uninterrupted
    one."""
    config = settings(
        train={"iterations": 7, "max_denoising_steps": 3, **WAYS[way]}, save={"per_steps": 3}, run_dir="placeholder"
    )

    def run(folder: str, resume: bool = False) -> Path:
        method = SemipermeableMembraneAlgorithm(
            config, model=tiny, output_dir=str(tmp_path), run_dir=str(tmp_path / folder)
        )
        return method.run(resume=resume).run.folder

    whole = run("whole")
    at = {"before a checkpoint": 2, "after a checkpoint": 5, "in the update": 4}[when]
    with monkeypatch.context() as patch:
        if when == "in the update":
            real_update, steps = torch.optim.AdamW.step, []

            def update(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
                real_update(self, *args, **options)
                steps.append(None)
                if len(steps) == at + 1:
                    raise KeyboardInterrupt

            patch.setattr(torch.optim.AdamW, "step", update)
        else:
            real = SemipermeableMembraneTrainer.step
            calls: list[None] = []

            def step(self: SemipermeableMembraneTrainer, *args: Any) -> dict[str, Tensor]:
                calls.append(None)
                losses = real(self, *args)
                if len(calls) == at + 1:
                    raise KeyboardInterrupt
                return losses

            patch.setattr(SemipermeableMembraneTrainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run("broken")
    assert (tmp_path / "broken" / "checkpoints" / "training.pt").exists()
    broken = run("broken", resume=True)
    for folder in (whole, broken):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(7))
        assert not list((folder / "checkpoints").iterdir())
    assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()
    mine, theirs = (load_file(folder / "edit.safetensors") for folder in (whole, broken))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(("way", "share"), [({"latent_pool": 2}, 0.9), ({"timesteps_per_trajectory": 3}, 0.9)])
def test_reused_latents_save_denoising(way: dict[str, int], share: float, tiny: DiffusionModel) -> None:
    def cost(train: dict[str, Any]) -> int:
        with watched(tiny) as seen:
            find(tiny, settings(train={"iterations": 14, "max_denoising_steps": 6, **train}))
        return len(seen)

    assert cost(way) < share * cost({})


def found(model: DiffusionModel, **overrides: Any) -> dict[str, Tensor]:
    """The tensors of the edit of a short search."""
    short = {"iterations": 2, "max_denoising_steps": 2, **overrides.pop("train", {})}
    return SemipermeableMembraneAlgorithm(settings(train=short, **overrides), model=model).find_edit().tensors()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_two_batch_sizes_each_have_their_meaning(tiny: DiffusionModel) -> None:
    """train.batch_size is of draws, each with a timestep of its own; prompt.batch_size of samples in one draw."""
    draws, samples = found(tiny, train={"batch_size": 2}), found(tiny, prompt={"batch_size": 2})
    assert equal(draws, found(tiny, train={"draws": 2})) and not equal(draws, samples)
    both = found(tiny, train={"batch_size": 2}, prompt={"batch_size": 2})
    assert not equal(both, draws) and not equal(both, samples)
    assert equal(samples, found(tiny, train={"batch_size": 1}, prompt={"batch_size": 2})), "control"
    assert settings(train={"batch_size": 3, "draws": 2}).train.drawn == 6


@pytest.mark.parametrize("other", [{"anchors": "vocabulary"}, {"anchor_layout": "reference"}])
def test_anchors_without_weight_are_not_drawn(other: dict[str, Any], tiny: DiffusionModel) -> None:
    """They would take two thirds of the samples of a step, and move the random numbers behind them."""

    def of(strength: float, **values: Any) -> dict[str, Tensor]:
        return found(tiny, prompt={"la_strength": strength, **values})

    assert equal(of(0.0), of(0.0, **other))
    assert not equal(of(1.0), of(1.0, **other)), "control"


@pytest.mark.parametrize("way", [{"latent_pool": 2}, {"timesteps_per_trajectory": 3}])
def test_reused_latents_stay_with_their_target(
    way: dict[str, int], tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eq. 4 compares predictions on the target's own x_k; the entries may differ in batch and image size too."""
    prompts = [{"target": "star"}, {"target": "dog", "batch_size": 2, "resolution": 32}]
    bench = Bench(tiny, settings(train={"max_denoising_steps": 6, **way}, prompts=prompts))
    walked, walks = dict[bytes, str | None](), list[None]()
    real = type(bench.trainer.walker)._walk

    def walk(walker: Any, task: Any, *args: Any) -> Any:
        states = real(walker, task, *args)
        walked.update({x.numpy().tobytes(): task.entry.target for x, *_ in states})
        walks.append(None)
        return states

    monkeypatch.setattr(type(bench.trainer.walker), "_walk", walk)
    generator, steps = torch.Generator().manual_seed(0), 40
    with bench.model.trainable():
        for _ in range(steps):
            task = bench.data.draw(generator)
            x, _, _ = bench.trainer.walker.latents(task, generator)
            assert walked[x.numpy().tobytes()] == task.entry.target
            assert x.shape == ((2, 4, 4, 4) if task.entry.target == "dog" else (1, 4, 8, 8))
    assert set(walked.values()) == {"star", "dog"}
    assert len(walks) < steps / 2  # control: they are reused


def test_the_run_leaves_an_spm_file_with_its_concept(tiny: DiffusionModel, tmp_path: Path) -> None:
    config = settings(save={"per_steps": 1, "precision": "float16"}, output_dir=str(tmp_path), gate={"factor": 2.0})
    method = SemipermeableMembraneAlgorithm(config, model=tiny)
    run = method.run().run
    stem = "semipermeable_membrane_neon style"
    assert method.final_file == tmp_path / f"{stem}_last.safetensors"
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        f"{stem}_1_steps.safetensors",
        f"{stem}_last.safetensors",
    }
    tensors = load_file(method.final_file)
    assert {t.dtype for key, t in tensors.items() if "lora_" in key and "weight" in key} == {torch.float16}
    edit = open_edit(run.folder)
    assert edit.info.concepts == ("neon style",)
    assert edit.info.gate == FacilitatedTransport(2.0, "clipcos_tokenuni", "paper")
    assert edit.info.seed == 0
    assert edit.info.citation.startswith("@inproceedings{lyu2024one")
    assert edit.info.config["train"]["iterations"] == 3
    assert edit.info.base == tiny.name
    assert run.read_environment()["concepts"] == ["neon style"]


# -- larger families
# --------------------------------------------------------------------------------------------------------


def test_one_step_on_sdxl(tiny_xl: DiffusionModel, snapshot: Callable) -> None:
    before = snapshot(tiny_xl)
    bench = Bench(
        tiny_xl, settings(prompt={"dynamic_crops": True, "sampling_batch_size": 2, "anchor_layout": "paper+empty"})
    )
    with watched(tiny_xl) as seen:
        losses, gradients = bench.step()
    assert sum(n for n, grad in seen if grad) == 1 + 3
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(g.any() for g in gradients)
    first = find(tiny_xl, settings())
    assert same(find(tiny_xl, settings()), first)
    assert snapshot(tiny_xl) == before


def test_sdxls_anchors_and_crops(tiny_xl: DiffusionModel) -> None:
    config = settings(prompt={"dynamic_crops": True, "resolution": 64})
    data = SemipermeableMembraneDataHandler(config, tiny_xl)
    g = torch.Generator().manual_seed(0)
    task = data.draw(g)
    rows = task.anchors.draw(g, task.unconditional)
    assert rows.pooled is not None and task.target.pooled is not None
    for part, target in ((rows.sequence, task.target.sequence), (rows.pooled, task.target.pooled)):
        ratio = part.flatten(1).norm(dim=1) / target.norm()
        assert ((ratio >= 0.8 - 1e-5) & (ratio < 1.2 + 1e-5)).all()
    originals = set()
    for _ in range(100):
        oh, ow, top, left, h, w = data.time_ids(task.entry, 64, 128, g).tolist()
        assert (h, w) == (64, 128)
        assert 64 <= oh < 192 and 128 <= ow < 384
        assert 0 <= top <= oh - 64 and 0 <= left <= ow - 128
        originals.add(oh)
    assert len(originals) > 30
    assert data.time_ids(settings().entries()[0], 64, 128, g).tolist() == [64, 128, 0, 0, 64, 128]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_one_step_at_full_width(family: str) -> None:
    """The published widths (320 channels, 768 and 2048 of text), shallow; no download."""
    unet: dict[str, Any] = {"block_out_channels": [320, 640]}
    text = {"num_hidden_layers": 1}
    if family == "sd1":
        model = family_member(architectures.stable_diffusion_1(), "wide", unet=unet, text=text)
    else:
        unet |= {"transformer_layers_per_block": [1, 1], "attention_head_dim": [5, 10]}
        model = family_member(architectures.stable_diffusion_xl(), "wide", unet=unet, text=text, text_2=text)
    edit = find(model, settings(train={"iterations": 1, "max_denoising_steps": 2, "lr_scheduler": "constant"}))
    assert {f.down.shape[1] for f in edit.factors.values()} >= {320, 640, {"sd1": 768, "sdxl": 2048}[family]}
    assert all(f.up.abs().max() > 0 for f in edit.factors.values())


# -- optimisers
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("AdamW", torch.optim.AdamW),
        ("adamw8bit", torch.optim.AdamW),
        ("PagedAdamW8bit", torch.optim.AdamW),
        ("Adafactor", torch.optim.Adafactor),
        ("SGDNesterov", torch.optim.SGD),
        ("torch.optim.RMSprop", torch.optim.RMSprop),
    ],
)
def test_optimizers_by_name(name: str, kind: type) -> None:
    try:
        import bitsandbytes  # noqa: F401

        pytest.skip("with bitsandbytes 8-bit optimisers are its own")
    except ImportError:
        pass
    train = settings(train={"optimizer_type": name, "optimizer_args": ["weight_decay=0.25"]}).train
    optimizer = make_optimizer(train, [torch.zeros(2, requires_grad=True)])
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.25
    assert optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"optimizer_type": "AdmaW"}, "adamw"),
        ({"optimizer_args": ["nonsense"]}, "'nonsense'"),
        ({"optimizer_args": ["speed=3"]}, "speed"),
        ({"lr_scheduler": "cosin"}, "cosine"),
        ({"lr_scheduler_args": "speed=3"}, "speed"),
        ({"lr_scheduler": "adafactor:fast"}, "adafactor"),
        ({"optimizer_type": "Lion"}, "lion-pytorch"),
    ],
)
def test_what_cannot_be_optimised_is_one_clear_line(train: dict[str, Any], said: str, tiny: DiffusionModel) -> None:
    from mu.core.errors import MuError

    with pytest.raises(MuError, match=said):
        find(tiny, settings(train=train))
