"""CiE and SepCE: what is protected stays, what is erased moves, shifts come and go one by one, and the loss is the
paper's."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

import mu
from mu.algorithms import algorithm
from mu.algorithms.separable_concept_erasure.algorithm import (
    ConceptIrrelevantErasureAlgorithm,
    SeparableConceptErasureAlgorithm,
)
from mu.algorithms.separable_concept_erasure.configs import (
    BasisConfig,
    ConceptIrrelevantErasureConfig,
    ConceptIrrelevantErasureMethod,
    SeparableConceptErasureConfig,
    SeparableConceptErasureMethod,
)
from mu.algorithms.separable_concept_erasure.data_handler import SeparableConceptErasureDataHandler, sentences_with
from mu.algorithms.separable_concept_erasure.model import DenseShift, SeparableShift, text_layers
from mu.algorithms.separable_concept_erasure.null_space import NullSpace, Room, eliminated, room_for, token_rows
from mu.algorithms.separable_concept_erasure.reconciling import also_protecting, sparing
from mu.algorithms.separable_concept_erasure.trainer import Effect, Momentum, SeparableConceptErasureTrainer, scales
from mu.core.errors import ConfigError, DataError, EditError
from mu.core.run import RunDirectory
from mu.data.prompt_lists import everyday
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo, shifted
from mu.edits.files import open_edit
from mu.edits.gatekeeper import prompt_gates
from mu.edits.gates import FacilitatedTransport
from mu.edits.low_rank import LowRankEdit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter
from mu.training.watch import relative_rate

FAST: dict[str, Any] = {"train": {"iterations": 3, "lr": 1e-2, "stop": "steps"}, "data": {"images": 4, "steps": 2}}
THREE = ["star", "heart", "moon"]


def settings(**overrides: Any) -> SeparableConceptErasureConfig:
    return SeparableConceptErasureConfig.parse(FAST).merged({"concepts": ["star"], **overrides})


def find(model: DiffusionModel, config: SeparableConceptErasureConfig) -> list[LowRankEdit]:
    return SeparableConceptErasureAlgorithm(config, model=model).find_edits()


@torch.no_grad()
def predict(model: DiffusionModel, prompt: str, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x, t = torch.randn(2, 4, 8, 8, generator=g), torch.randint(1000, (2,), generator=g)
    return model.predict_noise(x, t, model.encode([prompt, prompt]))


class Bench:
    """A trainer with a shift that is not zero."""

    def __init__(self, model: DiffusionModel, config: ConceptIrrelevantErasureConfig, scale: float = 0.05):
        self.model, self.config = model, config
        self.data = SeparableConceptErasureDataHandler(config, model)
        info, draw = EditInfo("test", tuple(config.concepts)), torch.Generator().manual_seed(5)
        self.shift: SeparableShift | DenseShift
        separable = isinstance(config, SeparableConceptErasureConfig)
        if isinstance(config, SeparableConceptErasureConfig):
            method = SeparableConceptErasureAlgorithm(config, model=model)
            self.shift = SeparableShift(model, method.room(self.data, config.concepts[0]), info)
            for weight in self.shift.weights:
                weight.data = torch.randn(weight.shape, generator=draw) * scale
        else:
            self.shift = DenseShift(model, info)
        self.trainer = SeparableConceptErasureTrainer(
            config, model, self.data, self.shift, config.concepts, anchor_moves=not separable
        )

    @contextmanager
    def installed(self, scale: float = 0.02) -> Iterator[None]:
        with self.shift.installed():
            if isinstance(self.shift, DenseShift):
                draw = torch.Generator().manual_seed(5)
                for weight in self.shift.weights:
                    weight.data += torch.randn(weight.shape, generator=draw) * scale
            yield


@contextmanager
def watched(model: DiffusionModel) -> Iterator[list[tuple[int, bool]]]:
    """(samples, with gradient) of each UNet evaluation inside the block."""
    seen: list[tuple[int, bool]] = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), torch.is_grad_enabled())))
    try:
        yield seen
    finally:
        handle.remove()


# -- null spaces
# ------------------------------------------------------------------------------------------------------------


def test_rank_rule(tiny: DiffusionModel) -> None:
    """d - L - (L-1) p directions for p prompts with different first words, since the encoder is causal."""
    length, width = 16, 192
    for p in range(4):
        rows = token_rows(tiny, ["", *THREE[:p]])
        assert rows.shape == (length + (length - 1) * p, width)
        assert len(NullSpace.of(rows).directions) == width - length - (length - 1) * p
    # A prompt that begins like another adds only what comes after: BOS, "star" are shared.
    assert len(token_rows(tiny, ["star", "star image"])) == length + (length - 2)


def test_equal_prefixes_have_equal_rows(tiny: DiffusionModel) -> None:
    """What `token_rows` builds on."""
    star, image = tiny.encode(["star"]).sequence[0], tiny.encode(["star image"]).sequence[0]
    torch.testing.assert_close(star[:2], image[:2])
    assert (star[2] - image[2]).norm() > 1e-2


def test_directions_are_null_and_orthonormal(tiny: DiffusionModel) -> None:
    exact, more = token_rows(tiny, ["", "star"]), token_rows(tiny, ["heart", "moon"])
    one, two = NullSpace.of(torch.cat([exact, more])), NullSpace.of(exact).without(more)
    for space in (one, two):
        S = space.directions
        assert (S @ S.T - torch.eye(len(S))).abs().max() < 1e-10
        assert (torch.cat([exact, more]) @ S.T).abs().max() < 1e-8
        assert (space.span @ S.T).abs().max() < 1e-10
        assert len(space.span) + len(S) == 192
    torch.testing.assert_close(
        one.project(torch.eye(192).double()), two.project(torch.eye(192).double()), atol=1e-7, rtol=0
    )


def test_tolerance_makes_room_and_its_leak_is_a_bound(tiny: DiffusionModel) -> None:
    exact, near = token_rows(tiny, [""]), token_rows(tiny, THREE)
    tight, loose = NullSpace.of(exact).without(near), NullSpace.of(exact).without(near, tol=1e-2)
    assert len(loose.directions) > len(tight.directions)
    assert tight.leak < 1e-8 < loose.leak <= 1e-2 * torch.linalg.matrix_norm(near, 2)
    assert (exact @ loose.directions.T).abs().max() < 1e-8  # the exact ones stay exact
    D = (
        torch.randn(7, len(loose.directions), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        @ loose.directions
    )
    moved = (near @ D.T).norm(dim=1).max()
    assert 0 < moved <= loose.leak * torch.linalg.matrix_norm(D, 2) * (1 + 1e-9)
    S = torch.linalg.svd(near @ loose.directions.T)[2] @ loose.directions
    assert (near @ S[:1].T).norm() > 0.99 * loose.leak  # it is attained


def test_elimination_spans_the_same_space() -> None:
    rows = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[:, 1] = 2 * rows[:, 0]  # the second column is no pivot
    space = NullSpace.of(rows)
    S = eliminated(space.span)
    assert S.shape == (7, 12)
    assert (rows @ S.T).abs().max() < 1e-10
    torch.testing.assert_close(S.norm(dim=1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(space.project(S), S)
    assert torch.linalg.matrix_rank(S) == 7
    assert (S @ S.T - torch.eye(7)).abs().max() > 0.1  # unit rows, not orthogonal
    # One vector for each free column: 1 there before it is divided by its norm, 0 at the other free columns.
    free = [1, 6, 7, 8, 9, 10, 11]
    scaled = S[:, free] / S[range(7), free][:, None]
    torch.testing.assert_close(scaled, torch.eye(7, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["orthonormal", "elimination"])
def test_the_basis_is_scaled_and_cut(tiny: DiffusionModel, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    def basis(**options: Any) -> Tensor:
        return room_for(tiny, "star", ["star"], ["heart"], {}, BasisConfig(kind=kind, **options)).basis

    full = basis()
    assert len(full) == {"orthonormal": 15, "elimination": 192 - 16 - 15}[kind]
    torch.testing.assert_close(basis(scale_factor=1e-4), 1e-4 * full)
    torch.testing.assert_close(basis(max_base=5), full[:5])
    with caplog.at_level(logging.WARNING, logger="mu"):
        assert len(basis(max_base=691)) == len(full)
    assert "max_base" in caplog.text


def test_orthonormal_directions_are_all_that_act_on_the_concept(tiny: DiffusionModel) -> None:
    room = room_for(tiny, "star", ["star", "a star image"], [""], {}, BasisConfig())
    E = token_rows(tiny, ["star", "a star image"])
    torch.testing.assert_close(E @ room.basis.T @ room.basis, room.space.project(E), atol=1e-6, rtol=0)
    assert len(room.basis) <= 2 * 15


def test_capacity_is_told(tiny: DiffusionModel) -> None:
    others = {word: [word] for word in ("moon", "ring", "tree", "cross", "fish", "house", "heart", "photo", "neon")}
    room = room_for(tiny, "star", ["star"], ["", "vintage"], others, BasisConfig(), leave=64)
    capacity = room.capacity
    assert capacity.protected[:2] == ("", "vintage")
    assert (capacity.free, capacity.rows) == (192 - 16 - 15 * 7, 16 + 15 * 7)  # the next one would leave 56
    assert capacity.left_out == ("heart", "photo", "neon")
    E, P0 = token_rows(tiny, ["star"]), NullSpace.of(token_rows(tiny, [""]))
    assert capacity.erasability == pytest.approx(float(room.space.project(E).norm() / P0.project(E).norm()))
    assert 0 < capacity.erasability < 1
    assert room_for(tiny, "star", ["star"], [""], {}, BasisConfig()).capacity.erasability == pytest.approx(1)
    lines = str(capacity).splitlines()
    assert len(lines) == 3
    assert f"leave {capacity.free} of 192" in lines[0]
    assert "'heart', 'photo', 'neon'" in lines[2]


def test_what_cannot_be_erased_is_refused(tiny: DiffusionModel) -> None:
    words = ["heart", "moon", "ring", "tree", "cross", "fish", "house", "photo", "neon", "sketch", "vintage", "thermal"]
    with pytest.raises(ConfigError, match=r"\b11\b.*\b192\b.*'moon' 16"):
        room_for(tiny, "star", ["star"], words[:11], {}, BasisConfig())
    with pytest.raises(ConfigError, match=r"^'star'(?!.*protect\.)"):
        room_for(tiny, "star", ["star"], ["star"], {}, BasisConfig())


def test_eight_prompts_fit_beside_the_empty_one_at_the_size_of_stable_diffusion(wide_text: DiffusionModel) -> None:
    """77 + 76 p rows for p prompts with different first words leave 691 - 76 p of 768 directions (section 2.3)."""
    words = ["heart", "moon", "ring", "tree", "cross", "fish", "house", "photo", "neon", "sketch"]
    for p in (0, 1, 4, 8):
        capacity = room_for(wide_text, "star", ["star"], words[:p], {}, BasisConfig()).capacity
        assert (capacity.rows, capacity.free, capacity.width) == (77 + 76 * p, 691 - 76 * p, 768)
        assert 0 < capacity.used <= min(76, capacity.free)
    with pytest.raises(ConfigError, match=r"\b10\b.*\b761\b.*\b7\b.*\b768\b.*'photo' 77.*erased=nearly"):
        room_for(wide_text, "star", ["star"], words[:9], {}, BasisConfig())


def test_text_layers_are_the_cross_attentions_keys_and_values(tiny: DiffusionModel, tiny_xl: DiffusionModel) -> None:
    for model in (tiny, tiny_xl):
        names = set(text_layers(model))
        blocks = {name.rpartition(".attn2.")[0] for name, _ in model.unet.named_modules() if ".attn2." in name}
        assert names == {f"unet.{block}.attn2.{part}.weight" for block in blocks for part in ("to_k", "to_v")}
        assert len(names) == 2 * len(blocks) > 0


# -- separability
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tiny: DiffusionModel) -> list[LowRankEdit]:
    return find(tiny, settings(concepts=THREE, protect={"prompts": ["a house"]}))


def test_protected_prompts_stay_and_the_concept_moves(tiny: DiffusionModel, three: list[LowRankEdit]) -> None:
    kept = ["", "a house", *THREE]
    before = {prompt: predict(tiny, prompt) for prompt in kept}
    for edit, concept in zip(three, THREE, strict=True):
        assert set(edit.info.protects) == {"", "a house", *THREE} - {concept}
        with edit.applied(tiny):
            for prompt in edit.info.protects:
                assert (predict(tiny, prompt) - before[prompt]).abs().max() < 1e-5
            assert (predict(tiny, concept) - before[concept]).abs().max() > 1e-3


def test_restoring_one_leaves_the_others_erased(
    tiny: DiffusionModel, three: list[LowRankEdit], snapshot: Callable
) -> None:
    weights, before = snapshot(tiny), {prompt: predict(tiny, prompt) for prompt in (*THREE, "", "a house")}
    bank = Bank(tiny, three)
    with bank.applied():
        erased = {concept: predict(tiny, concept) for concept in THREE}
        for prompt in ("", "a house"):  # of the sum, not of each shift alone
            torch.testing.assert_close(predict(tiny, prompt), before[prompt], atol=1e-5, rtol=0)
    bank.restore("heart")
    with bank.applied():
        torch.testing.assert_close(predict(tiny, "heart"), before["heart"], atol=1e-5, rtol=0)
        for concept in ("star", "moon"):
            torch.testing.assert_close(predict(tiny, concept), erased[concept], atol=1e-5, rtol=0)
            assert (erased[concept] - before[concept]).abs().max() > 1e-3
    assert snapshot(tiny) == weights


def test_merged_into_the_weights_in_any_order_they_act_as_the_factors_do(
    tiny: DiffusionModel, three: list[LowRankEdit], snapshot: Callable
) -> None:
    with Bank(tiny, three).applied():
        wanted = {prompt: predict(tiny, prompt) for prompt in (*THREE, "")}
    weights, before = snapshot(tiny), predict(tiny, "star")
    for order in itertools.permutations(three):
        with shifted(tiny, Bank(tiny, list(order)).deltas()):
            assert snapshot(tiny) != weights
            for prompt, there in wanted.items():
                torch.testing.assert_close(predict(tiny, prompt), there, atol=1e-5, rtol=0)
        assert snapshot(tiny) == weights
    assert (wanted["star"] - before).abs().max() > 1e-3, "control"


def test_the_sum_is_one_edit_and_comes_apart(tiny: DiffusionModel, three: list[LowRankEdit], tmp_path: Path) -> None:
    config = settings(concepts=THREE, protect={"prompts": ["a house"]}, output_dir=str(tmp_path))
    method = SeparableConceptErasureAlgorithm(config, model=tiny)
    run = method.run().run
    both = open_edit(run.edit)
    assert both.info.concepts == tuple(THREE)
    assert both.info.protects == ("", "a house")
    with Bank(tiny, three).applied():
        wanted = {concept: predict(tiny, concept) for concept in THREE}
    orders = [Bank(tiny, list(order)).deltas() for order in itertools.permutations(three)]
    assert all((order[name] - orders[0][name]).abs().max() < 1e-6 for order in orders for name in orders[0])
    with both.applied(tiny):
        for concept in THREE:
            torch.testing.assert_close(predict(tiny, concept), wanted[concept], atol=1e-5, rtol=0)
    for parts in (method.separate(both), SeparableConceptErasureAlgorithm(config, model=tiny).separate(both)):
        for part, edit in zip(parts, three, strict=True):
            assert isinstance(part, LowRankEdit) and part.info.concepts == edit.info.concepts
            assert all(torch.equal(part.tensors()[name], tensor) for name, tensor in edit.tensors().items())
    assert len(run.read_environment()["capacity"]) == 3
    found = open_edit(run.checkpoints / "concept_0.safetensors").info.found
    assert (found["updates"], found["updates_at_most"], found["width"]) == (3, 3, 192)
    assert 0 < found["used"] <= found["free"] and 0 < found["erasability"] <= 1 and found["norm"] > 0
    assert [row["step"] for row in run.read_metrics()] == list(range(9))


def test_together_is_one_by_one(tiny: DiffusionModel, three: list[LowRankEdit]) -> None:
    """Each search alone, the others protected, and a joint one whose forward pass has all shifts give the same."""
    for concept, edit in zip(THREE, three, strict=True):
        rest = [other for other in THREE if other != concept]
        (alone,) = find(tiny, settings(concepts=[concept], protect={"prompts": ["a house", *rest]}))
        for (name, a), (_, b) in zip(alone.deltas(), edit.deltas(), strict=True):
            assert (a - b).abs().max() < 1e-4 * b.abs().max(), name
    benches = [Bench(tiny, settings(concepts=[c, *(o for o in THREE if o != c)])) for c in THREE[:2]]
    gradients = []
    for together in (True, False):
        trainer, weights = benches[0].trainer, benches[0].shift.weights
        trainer.images = trainer.images[:1]
        with benches[0].installed(), benches[0].shift.frozen():
            state = trainer.images[0].batch(0, 1)
        with benches[0].installed():
            if together:
                with benches[1].installed():
                    L = (trainer.r(state) * state.r).mean()
                    gradients.append(torch.autograd.grad(L, [*weights, *benches[1].shift.weights]))
            else:
                L = (trainer.r(state) * state.r).mean()
                gradients.append(torch.autograd.grad(L, weights))
    for k, alone in enumerate(gradients[1]):
        assert (gradients[0][k] - alone).abs().max() < 1e-3 * alone.abs().max()
    assert max(g.abs().max() for g in gradients[0][len(gradients[1]) :]) < 1e-4 * max(
        g.abs().max() for g in gradients[1]
    )


def test_trained_at_the_same_time_shifts_become_what_they_become_one_after_another(tiny: DiffusionModel) -> None:
    """The loop of section 2.6, all shifts on in every forward pass, each with its own loss, gradient and optimiser."""
    train = {"iterations": 3, "lr": 1e-2, "adam_eps": 1e-4}
    alone = find(tiny, settings(concepts=THREE[:2], train=train))
    benches = [
        Bench(tiny, settings(concepts=[c, *(o for o in THREE[:2] if o != c)], train=train), scale=0.0)
        for c in THREE[:2]
    ]
    for bench in benches:
        bench.trainer.images = bench.trainer.images[:1]  # its own concept's; the other is there to be protected
    optimizers = [torch.optim.Adam(bench.shift.weights, lr=1e-2, eps=1e-4) for bench in benches]
    with benches[0].installed(), benches[1].installed():
        for i in range(3):
            for bench, optimizer in zip(benches, optimizers, strict=True):
                optimizer.zero_grad()
                bench.trainer.step(i)["loss"].backward(inputs=bench.shift.weights)
                optimizer.step()
    for bench, edit in zip(benches, alone, strict=True):
        together = bench.shift.finished()
        assert isinstance(together, LowRankEdit)
        for (name, D), (_, wanted) in zip(together.deltas(), edit.deltas(), strict=True):
            assert (D - wanted).abs().max() < 1e-2 * wanted.abs().max(), name


def test_a_new_shift_spares_old_concepts_and_the_old_one_is_mended(tiny: DiffusionModel) -> None:
    (old,) = find(tiny, settings(concepts=["star"], protect={"prompts": ["a house"]}))
    (new,) = find(tiny, settings(concepts=["heart"], protect={"prompts": ["star"]}))
    before = {prompt: predict(tiny, prompt) for prompt in ("star", "heart", "a house", "")}

    def moved(edit: LowRankEdit, prompt: str) -> float:
        with edit.applied(tiny):
            return float((predict(tiny, prompt) - before[prompt]).abs().max())

    assert moved(new, "star") < 1e-5
    assert moved(old, "heart") > 1e-4  # one direction only, in time
    mended = also_protecting(old, tiny, ["heart"])
    assert mended.info.protects == ("", "a house", "heart")
    assert all(moved(mended, prompt) < 1e-5 for prompt in ("heart", "a house", ""))
    assert moved(mended, "star") > 0.1 * moved(old, "star")
    with pytest.raises(EditError, match="'star'"):
        also_protecting(LowRankEdit(old.factors, EditInfo("spm", ("star",))), tiny, ["heart"])


def test_mending_keeps_exact_what_was_exact_and_spares_what_was_spared(tiny: DiffusionModel) -> None:
    """Words in ``protect.others`` are protected up to ``null_tol``; that must not loosen what is protected exactly."""
    others = ["heart", "ring", "tree", "cross", "fish", "house", "neon"]
    protect = {"prompts": ["a house"], "others": others, "null_tol": 0.05}
    (old,) = find(tiny, settings(concepts=["star"], protect=protect))
    assert set(old.info.protects) == {"", "a house"} and set(old.info.spares) == set(others)

    def moved(edit: LowRankEdit, prompts: Sequence[str]) -> float:
        E = token_rows(tiny, prompts)
        return max(float((E @ D.double().T).norm() / (E.norm() * D.norm())) for _, D in edit.deltas())

    assert moved(old, ["", "a house"]) < 1e-6
    assert 1e-4 < moved(old, others) < 0.05, "control: what is spared is not exact"
    mended = also_protecting(old, tiny, ["moon", "ring"])
    assert moved(mended, ["", "a house", "moon", "ring"]) < 1e-6 < moved(old, ["moon"])
    assert moved(mended, others) < 0.05
    assert set(mended.info.spares) == set(others) - {"ring"} and "ring" in mended.info.protects


def test_a_shift_is_mended_as_often_as_concepts_come(tiny: DiffusionModel) -> None:
    longer = {"train": {"iterations": 20, "lr": 1e-3}}
    (edit,) = find(tiny, settings(concepts=["star"], **longer))
    method = SeparableConceptErasureAlgorithm(settings(concepts=["moon"]), model=tiny)
    for count, concept in enumerate(["moon", "heart", "ring"]):
        edit, kept = method.mended(edit, [concept], 60)
        assert kept >= 0.9, concept
        assert set(edit.info.protects) == {"", "moon", "heart", "ring"} - {*["heart", "ring"][count:]}


def test_sentences_are_moved_less_the_more_they_weigh(tiny: DiffusionModel) -> None:
    """The term of the loss is its definition, has the weight of the settings, and trains the delta away from them."""
    config = settings(concepts=["neon"], protect={"sentences": 2.0})
    method = SeparableConceptErasureAlgorithm(config, model=tiny)
    method.restorable = ["fish"]
    data = method._begin()
    sentences = data.sentences("neon")
    assert "a picture of fish" in sentences and not any("neon" in text for text in sentences)
    room, draw = method.room(data, "neon"), torch.Generator().manual_seed(5)
    shift = SeparableShift(tiny, room, EditInfo("test", ("neon",)), sentences)
    assert shift.moved() == 0
    for weight in shift.weights:
        weight.data = torch.randn(weight.shape, generator=draw) * 0.05
    rows = token_rows(tiny, sentences)
    shares = [
        float(
            (rows @ D.detach().double().T).square().sum()
            / (rows @ find_parameter(tiny, name).double().T).square().sum()
        )
        for name, D in shift.edit.deltas()
    ]
    moved = shift.moved()
    assert float(moved) == pytest.approx(sum(shares) / len(shares), rel=1e-3)
    trainer = SeparableConceptErasureTrainer(config, tiny, data, shift, ["neon"], anchor_moves=False)
    with shift.installed():
        losses = trainer.step(0)
    rest = losses["correlation"] + config.train.regulariser * losses["norm"]
    assert float(losses["loss"]) == pytest.approx(float(rest + 2 * losses["sentences"]), rel=1e-5)
    assert SeparableShift(tiny, room, EditInfo("test", ("neon",))).moved() is None  # without sentences no such term


def test_sparing_moves_sentences_less_and_its_own_prompts_nearly_as_before(
    tiny: DiffusionModel, three: list[LowRankEdit]
) -> None:
    edit, own = three[0], [three[0].info.concepts[0]]
    sentences = ["a boat on a lake", "two chairs in the garden", "an old map"]

    def size(of: LowRankEdit, prompts: list[str]) -> float:
        rows = token_rows(tiny, prompts)
        return sum(float((rows @ D.double().T).square().sum()) for _, D in of.deltas()) ** 0.5

    before, same = (size(edit, texts) for texts in (sentences, own))
    last = before
    for _, spared in sparing(edit, tiny, own, sentences, (0.1, 1.0, 10.0)):
        assert size(spared, sentences) < last
        last = size(spared, sentences)
        assert size(spared, list(edit.info.protects)) <= 1e-4 * same  # what is exact stays exact
    ((_, slight),) = sparing(edit, tiny, own, sentences, [1e-9])
    assert size(slight, own) == pytest.approx(same, rel=1e-3) and last < before / 2


def test_the_leak_is_told(tiny: DiffusionModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mu"):
        find(tiny, settings())
    assert "leak" in caplog.text
    assert "erasability 1.00" in caplog.text
    bench = Bench(tiny, settings(protect={"others": ["heart", "moon"], "null_tol": 0.03}))
    assert isinstance(bench.shift, SeparableShift)
    bound, moved = bench.shift.leak()
    E = tiny.encode(["", "heart", "moon"]).sequence.flatten(0, 1)
    largest = max(float((E @ D.T).norm(dim=1).max()) for _, D in bench.shift.edit.deltas())
    assert moved > 1e-5
    assert 0 < largest <= bound


def test_the_basis_is_stored_once(tiny: DiffusionModel, three: list[LowRankEdit], tmp_path: Path) -> None:
    edit = three[0]
    tensors = edit.tensors()
    assert sum(name.startswith("shared_down") for name in tensors) == 1
    assert not any("lora_down" in name for name in tensors)
    edit.save(tmp_path / "edit.safetensors")
    back = open_edit(tmp_path / "edit.safetensors")
    found = dict(back.deltas())
    assert found.keys() == set(edit.parameters)
    assert all(torch.equal(found[name], D) for name, D in edit.deltas())
    with pytest.raises(EditError, match=r"attn2\.to_k"):
        LowRankEdit.from_tensors(
            {name: t for name, t in tensors.items() if not name.startswith("shared_down")}, edit.info
        )


# -- the loss
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sepce", "cie"])
def test_a_step_is_the_papers(tiny: DiffusionModel, kind: str) -> None:
    """Eq. 27, 28 and the regulariser against predictions of models whose weights were changed by hand."""
    overrides = {"concepts": ["star"], "train": {"regulariser": 0.3, "batch_size": 2}}
    config = (
        (SeparableConceptErasureConfig if kind == "sepce" else ConceptIrrelevantErasureConfig)
        .parse(FAST)
        .merged(overrides)
    )
    bench = Bench(tiny, config)
    with bench.installed():
        losses = bench.trainer.step(0)
        with bench.shift.frozen():
            state = bench.trainer.images[0].batch(0, 2)
        deltas = dict(bench.shift.finished().deltas())
    E, empty = tiny.encode(["star"] * 2), tiny.encode([""] * 2)
    r_0 = tiny.predict_noise(state.x, state.t, E) - tiny.predict_noise(state.x, state.t, empty)
    kept = {name: tiny.unet.get_parameter(name.removeprefix("unet.")) for name in deltas}
    original = {name: p.data for name, p in kept.items()}
    try:
        for name, p in kept.items():
            p.data = original[name] + deltas[name]
        r = tiny.predict_noise(state.x, state.t, E) - tiny.predict_noise(state.x, state.t, empty)
    finally:
        for name, p in kept.items():
            p.data = original[name]
    L_cor = (r * r_0).sum() / r.numel()
    R = sum(D.abs().sum() for D in deltas.values()) / len(deltas)
    assert float(losses["correlation"].detach()) == pytest.approx(float(L_cor.detach()), rel=1e-3)
    assert float(losses["norm"].detach()) == pytest.approx(float(R), rel=1e-5)
    assert float(losses["loss"].detach()) == pytest.approx(float(L_cor + 0.3 * R), rel=1e-4)
    assert float(L_cor) != pytest.approx(float((r_0 * r_0).mean()), rel=1e-2)  # the shift does something
    attention = [name for name, _ in tiny.unet.named_parameters() if ".attn2." in name]
    assert len(deltas) == (len(attention) if kind == "cie" else len(text_layers(tiny)))


@pytest.mark.parametrize("name", ["cie", "sepce"])
def test_the_norm_is_logged_as_it_is_without_a_regulariser_too(name: str, tiny: DiffusionModel) -> None:
    chosen, rows = algorithm(name), list[dict[str, Any]]()
    short = {"concepts": ["star"], "data": {"images": 2, "steps": 1}, "train": {"iterations": 2, "regulariser": 0.0}}
    edit: Any = chosen(short, model=tiny).find_edit(log=rows.append)  # type: ignore[arg-type]
    first, second = (row["norm"] for row in rows)
    assert first == 0, "no delta yet"
    assert 0 < second < edit.info.found["norm"]
    assert all(row["loss"] == row["correlation"] for row in rows), "control: it is not in the loss"


def test_the_first_step_and_its_gradient(tiny: DiffusionModel) -> None:
    """L = mean(r^2), R = 0; the gradient with respect to a dense shift lies in the row space of E P."""
    bench = Bench(tiny, settings(protect={"prompts": ["heart"]}, basis={"kind": "elimination"}), scale=0.0)
    assert isinstance(bench.shift, SeparableShift)
    with bench.installed():
        losses = bench.trainer.step(0)
        with bench.shift.frozen():
            state = bench.trainer.images[0].batch(0, 1)
        (found,) = torch.autograd.grad(losses["loss"], bench.shift.weights[:1])
    assert float(losses["correlation"].detach()) == pytest.approx(float(state.r.square().mean()), rel=1e-4)
    assert float(losses["norm"].detach()) == 0
    # G = dL/dw = dL/dD S^T, so dL/dD P = G (S S^T)^-1 S
    S = bench.shift.room.basis
    G = found.double() @ torch.linalg.inv(S @ S.T) @ S
    B = room_for(tiny, "star", ["star"], ["heart"], {}, BasisConfig()).basis
    assert G.norm() > 0
    assert (G - G @ B.T @ B).norm() < 1e-4 * G.norm()


def test_the_distance_begins_as_the_correlation_does_and_ends_at_the_anchor(tiny: DiffusionModel) -> None:
    def step(objective: str, scale: float) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        train = {"objective": objective, "regulariser": 0.0, "batch_size": 2}
        bench = Bench(tiny, settings(train=train), scale)
        with bench.installed():
            losses = bench.trainer.step(0)
            found = torch.autograd.grad(losses["loss"], bench.shift.weights)
            with bench.shift.frozen():
                states = bench.trainer.images[0].batch(0, 2)
            with torch.no_grad():
                r = bench.trainer.r(states)
        return losses, torch.cat([g.flatten() for g in found]), r

    correlation, published, r_0 = step("correlation", 0.0)
    distance, own, _ = step("distance", 0.0)
    torch.testing.assert_close(own, published, rtol=1e-4, atol=1e-9)
    assert float(distance["loss"]) == pytest.approx(float(r_0.square().mean()) / 2, rel=1e-4)
    torch.testing.assert_close(distance["correlation"], correlation["correlation"])
    correlation, published, r = step("correlation", 3.0)
    distance, own, _ = step("distance", 3.0)
    assert float(distance["loss"]) == pytest.approx(float(r.square().mean()) / 2, rel=1e-4)
    torch.testing.assert_close(distance["correlation"], correlation["correlation"])
    assert float(correlation["loss"]) == float(correlation["correlation"]), "control"
    assert F.cosine_similarity(own, published, dim=0) < 0.99, "control: they part as soon as something has moved"


def test_a_probe_reads_a_shift_in_training_with_its_gate(tiny: DiffusionModel) -> None:
    config = settings()
    method = SeparableConceptErasureAlgorithm(config, model=tiny)
    room = method.room(SeparableConceptErasureDataHandler(config, tiny), "star")
    shift = SeparableShift(tiny, room, EditInfo("test", ("star",), gate=FacilitatedTransport()))
    draw = torch.Generator().manual_seed(5)
    for weight in shift.weights:
        weight.data = torch.randn(weight.shape, generator=draw)
    with shift.finished().applied(tiny):
        used = predict(tiny, "a house")
    with shift.installed():
        whole = predict(tiny, "a house")
        with shift.as_used():
            torch.testing.assert_close(predict(tiny, "a house"), used)
        assert torch.equal(predict(tiny, "a house"), whole), "it is in training again"
    assert (whole - used).abs().max() > 1e-3, "control: the gate keeps something back"


def test_evaluations_a_step(tiny: DiffusionModel) -> None:
    for config, graded in (
        (settings(), 1),
        (ConceptIrrelevantErasureConfig.parse(FAST).merged({"concepts": ["star"]}), 2),
    ):
        for stored in (0, 2):
            bench = Bench(tiny, config.merged({"data": {"stored_targets": stored}}))
            with bench.installed():
                for i in range(4):
                    with bench.shift.frozen():
                        assert bench.trainer.images[0].images[i].shape == (1, 4, 8, 8)  # made before the count
                with watched(tiny) as seen:
                    bench.trainer.step(0)
                assert seen == [(2, False), (graded, True)]
                bench.trainer.step(1)
                with watched(tiny) as seen:
                    bench.trainer.step(2)
                assert seen == ([(graded, True)] if stored else [(2, False), (graded, True)])


def test_stored_targets_come_again(tiny: DiffusionModel) -> None:
    bench = Bench(tiny, settings(data={"stored_targets": 3}))
    fresh = Bench(tiny, settings()).trainer.images[0]
    stored = bench.trainer.images[0]
    first, second = stored.batch(0, 2), stored.batch(1, 2)  # 0 1, 2 0
    assert torch.equal(first.x[0], second.x[1]) and torch.equal(first.r[0], second.r[1])
    torch.testing.assert_close(fresh.batch(0, 2).r, first.r)
    assert not torch.equal(fresh.batch(1, 2).x[1], second.x[1])


def test_v_prediction_is_trained_in_its_own_space(tiny_v: DiffusionModel) -> None:
    """r in eps would be alpha_t r: next to nothing where the layout of an image is decided."""
    trainer = Bench(tiny_v, settings()).trainer
    s = trainer.images[0].batch(0, 2)
    c, a = (tiny_v.predict(s.x, s.t, rows) for rows in (s.c, s.anchor))
    torch.testing.assert_close(s.r, c - a)
    torch.testing.assert_close(trainer.r(s), c - a)
    in_eps = tiny_v.predict_noise(s.x, s.t, s.c) - tiny_v.predict_noise(s.x, s.t, s.anchor)
    torch.testing.assert_close(in_eps, tiny_v.level(s.t).alpha * s.r, rtol=1e-3, atol=1e-6)
    assert (in_eps - s.r).abs().max() > 0.1 * s.r.abs().max(), "control"


def test_templates_take_turns_and_may_be_put_into_the_anchor(tiny: DiffusionModel) -> None:
    prompt = {"templates": ["{}", "a {} image"], "anchor": "ring", "template_anchor": True, "held_out": ["{} picture"]}
    config = settings(prompt=prompt)
    data = SeparableConceptErasureDataHandler(config, tiny)
    assert data.prompts("star") == [("star", "ring"), ("a star image", "a ring image")]
    assert data.prompts("star", held_out=True) == [("star picture", "ring picture")]
    bench = Bench(tiny, config)
    states = bench.trainer.images[0].batch(0, 3)
    wanted = tiny.encode(["star", "a star image", "star"]).sequence
    torch.testing.assert_close(states.c.sequence, wanted)
    torch.testing.assert_close(states.anchor.sequence, tiny.encode(["ring", "a ring image", "ring"]).sequence)
    assert len(bench.shift.weights[0][0]) > 15  # the row space of both templates


def test_other_words_are_protected_but_not_the_concepts_own(tiny: DiffusionModel) -> None:
    config = settings(
        concepts=["neon style", "star"], protect={"others": ["neon", "Star", "moon"], "templates": ["{}", "a {}"]}
    )
    data = SeparableConceptErasureDataHandler(config, tiny)
    assert data.others("neon style", config.protect) == {"moon": ["moon", "a moon"]}
    assert data.exact("neon style", config.protect) == ["", "star", "a star"]
    sentences = config.protect.merged({"others": ["A moon in neon style.", "A moon."], "templates": ["{}"]})
    assert list(data.others("neon style", sentences)) == ["A moon."], "with its dot too"
    nearly = config.protect.merged({"erased": "nearly", "templates": ["{}"]})
    assert data.exact("neon style", nearly) == [""]
    assert list(data.others("neon style", nearly)) == ["star", "Star", "moon"]
    assert data.exact("star", settings(prompt={"anchor": "ring"}).protect) == ["", "neon style"]
    with_anchor = SeparableConceptErasureDataHandler(settings(prompt={"anchor": "ring"}), tiny)
    assert with_anchor.exact("star", config.protect) == ["", "ring"]


def test_prompts_stay_with_their_images(tiny: DiffusionModel) -> None:
    """Three templates and four images: the image that was made of a prompt is noised for that prompt, also later."""
    config = settings(prompt={"templates": ["{}", "a {}", "{} image"]})
    images = Bench(tiny, config).trainer.images[0]
    first, again = (images.predicted(range(k, k + 4)).c.sequence for k in (0, 4))
    torch.testing.assert_close(first, again)
    assert not torch.equal(first[0], first[1])


def test_a_concept_without_images_is_told_before_another_is_trained(tiny: DiffusionModel, tmp_path: Path) -> None:
    (tmp_path / "star").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "star" / "0.png")
    with watched(tiny) as seen, pytest.raises(DataError, match="heart"):
        find(tiny, settings(concepts=["star", "heart"], data={"folder": f"{tmp_path}/{{}}"}))
    assert not seen
    with pytest.raises(ConfigError, match=r"data\.folder"):
        settings(concepts=["star", "heart"], data={"folder": str(tmp_path / "star")})


# -- stopping
# ---------------------------------------------------------------------------------------------------------------


def test_momentum() -> None:
    m = Momentum(0.9)
    for value in (1.0, 2.0, -1.0):
        m.add(torch.tensor(value))
    assert float(m.value) == pytest.approx(0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * -1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("train", "updates"),
    [({"threshold": 1e9}, 12), ({"threshold": -1e9}, 15), ({"threshold": 1e9, "stop": "steps"}, 15)],
)
def test_it_stops_after_twelve_updates_at_the_earliest(
    tiny: DiffusionModel, train: dict[str, Any], updates: int
) -> None:
    config = settings(train={"iterations": 15, "stop": "correlation", **train}, data={"stored_targets": 2})
    bench, rows = Bench(tiny, config), []
    with bench.installed():
        bench.trainer.train("test", log=rows.append)
    assert len(rows) == bench.trainer.done == updates


def test_it_stops_by_prompts_never_trained_on(tiny: DiffusionModel) -> None:
    def trained(left: float) -> Bench:
        train = {"iterations": 30, "stop": "held_out", "left": left, "lr": 1e-3, "threshold": 1e9}
        bench = Bench(
            tiny, settings(train=train, prompt={"held_out": ["a {} picture"]}, data={"stored_targets": 2}), scale=0.0
        )
        with bench.installed():
            assert bench.trainer.held_out_left() == pytest.approx(1.0, abs=1e-4)
            bench.trainer.train("test")
            assert (bench.trainer.held_out_left() < left) == (bench.trainer.done < 30)
        return bench

    bench = trained(0.999)
    assert bench.trainer.done == 21  # looks at every tenth step
    states = bench.trainer.held_out[0].predicted(range(2))
    torch.testing.assert_close(states.c.sequence, tiny.encode(["a star picture"] * 2).sequence)
    assert trained(-1e9).trainer.done == 30, "control"
    with pytest.raises(ConfigError, match=r"train\.stop.*prompt\.held_out"):
        settings(train={"stop": "held_out"})


def test_gradients_are_zeroed_or_summed(tiny: DiffusionModel) -> None:
    def seen_by_adam(how: str) -> list[Tensor]:
        bench = Bench(tiny, settings(train={"iterations": 2, "gradients": how}), scale=0.0)
        seen: list[Tensor] = []
        handle = register_optimizer_step_post_hook(lambda *_: seen.append(bench.shift.weights[0].grad.clone()))  # type: ignore[union-attr]
        try:
            with bench.installed():
                bench.trainer.train("test")
        finally:
            handle.remove()
        return seen

    summed, zeroed = seen_by_adam("summed"), seen_by_adam("zeroed")
    torch.testing.assert_close(summed[0], zeroed[0])
    torch.testing.assert_close(summed[1], zeroed[0] + zeroed[1])
    assert (zeroed[0] - zeroed[1]).norm() > 0.1 * zeroed[0].norm()


def test_several_concepts_of_one_shift_are_weighed(tiny: DiffusionModel) -> None:
    L = [torch.tensor(2.0), torch.tensor(-0.5)]
    assert [float(eta) for eta in scales(L)] == [1.0, 4.0]
    config = ConceptIrrelevantErasureConfig.parse(FAST).merged(
        {"concepts": ["star", "heart"], "train": {"regulariser": 0.0}}
    )
    bench = Bench(tiny, config)
    with bench.installed():
        losses = bench.trainer.step(0)
        with bench.shift.frozen():
            states = [images.batch(0, 1) for images in bench.trainer.images]
        each = [(bench.trainer.r(state) * state.r).mean().detach() for state in states]
        largest = max(float(value) for value in each)
        wanted = sum(abs(largest) / abs(float(value)) * float(value) for value in each)
        assert float(losses["loss"].detach()) == pytest.approx(wanted, rel=1e-4)


# -- whole runs
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", ["zeroed", "summed"])
def test_an_interrupted_run_goes_on_with_the_same_numbers(
    tiny: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradients: str
) -> None:
    config = settings(concepts=["star", "heart"], train={"iterations": 4, "gradients": gradients})
    whole = find(tiny, config)
    method = SeparableConceptErasureAlgorithm(config.merged({"output_dir": str(tmp_path)}), model=tiny)
    step, calls = SeparableConceptErasureTrainer.step, itertools.count()

    def failing(self: SeparableConceptErasureTrainer, i: int) -> dict[str, Tensor]:
        if next(calls) == 6:
            raise KeyboardInterrupt
        return step(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(SeparableConceptErasureTrainer, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            method.run()
    run = method.run(resume=True).run
    for part, edit in zip(method.parts, whole, strict=True):
        for name, factors in edit.factors.items():
            assert torch.equal(part.factors[name].up, factors.up)
    assert [row["step"] for row in run.read_metrics()] == list(range(8))


def test_own_images(tiny: DiffusionModel, tmp_path: Path) -> None:
    folder = tmp_path / "star"
    folder.mkdir()
    for k, size in enumerate(((80, 64), (64, 64), (32, 40))):
        Image.new("RGB", size, (40 * k, 200, 20)).save(folder / f"{k}.png")
    config = settings(data={"folder": f"{tmp_path}/{{}}", "images": 2})
    images = SeparableConceptErasureDataHandler(config, tiny).images("star")
    with watched(tiny) as seen:
        assert len(images) == 2
        assert images[0].shape == (1, 4, 8, 8)
        assert torch.equal(images[2], images[0])
        assert not torch.equal(images[1], images[0])
    assert not seen  # nothing is generated
    again = SeparableConceptErasureDataHandler(config, tiny).images("star")
    assert torch.equal(again[1], images[1])
    other = SeparableConceptErasureDataHandler(config.merged({"seed": 1}), tiny).images("star")
    assert not torch.equal(other[1], images[1])  # drawn from the posterior


def test_images_are_made_when_they_are_asked_for(tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mu.diffusion.noised_images.PIXELS_AT_ONCE", 2 * 64 * 64)
    config = settings(data={"images": 5, "steps": 2})
    images = SeparableConceptErasureDataHandler(config, tiny).images("star")
    with watched(tiny) as seen:
        images[1]
        assert len(seen) == 2  # two steps, for the first two images at once
        images[0]
        assert len(seen) == 2
        last = images[4]
        assert len(seen) == 4
    assert torch.equal(SeparableConceptErasureDataHandler(config, tiny).images("star")[4], last)


@pytest.mark.parametrize("family", ["tiny_v", "tiny_xl"])
def test_the_whole_family(family: str, request: pytest.FixtureRequest, snapshot: Callable) -> None:
    """SD 2.x in v and SDXL with two encoders; narrow ones, so that the empty prompt takes half of their directions."""
    model: DiffusionModel = request.getfixturevalue(family)
    weights, before = snapshot(model), {prompt: predict(model, prompt) for prompt in ("", "star")}
    (edit,) = find(model, settings())
    with edit.applied(model):
        assert (predict(model, "star") - before["star"]).abs().max() > 1e-4
        assert (predict(model, "") - before[""]).abs().max() < 1e-5
    assert snapshot(model) == weights


# -- settings
# ---------------------------------------------------------------------------------------------------------------


def test_presets_are_the_published_ones() -> None:
    for name in ("styles", "objects", "nudity"):
        sepce, cie = SeparableConceptErasureMethod.presets[name], ConceptIrrelevantErasureMethod.presets[name]
        assert (sepce.train.lr, sepce.basis.scale_factor, sepce.train.adam_eps) == (0.1, 1e-4, 1e-8)
        assert (cie.train.lr, cie.train.regulariser, sepce.train.regulariser) == (1e-5, 1e-6, 1e-6)
        assert sepce.basis.kind == "elimination"
        assert sepce.train.threshold == cie.train.threshold == (0.0 if name == "nudity" else 1e-4)
        for config in (sepce, cie):
            assert config.model == "CompVis/stable-diffusion-v1-4"
            assert (config.train.iterations, config.train.batch_size, config.data.images) == (1000, 1, 1000)
            assert (config.train.gradients, config.train.stop, config.train.momentum) == ("summed", "correlation", 0.9)
    assert SeparableConceptErasureAlgorithm.for_concepts(["x"], "some/model", "styles").train.lr == 0.1
    assert SeparableConceptErasureAlgorithm.for_concepts(["x"], "some/model").calibrate.on
    chosen = SeparableConceptErasureAlgorithm.for_concepts(["a star"], "canvas")
    assert (chosen.model, chosen.concepts, chosen.train.batch_size) == ("canvas", ["a star"], 4)
    assert len({id(SeparableConceptErasureMethod.presets[name]) for name in SeparableConceptErasureMethod.presets}) == 6
    with pytest.raises(ConfigError, match="'styles'"):
        ConceptIrrelevantErasureAlgorithm.for_concepts(["x"], preset="styl")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"concepts": []}, "concepts"),
        ({"train": {"gradients": "sum"}}, "gradients"),
        ({"prompt": {"templates": ["no place"]}}, r"prompt\.templates"),
        ({"protect": {"templates": ["{} {}"]}}, r"protect\.templates"),
        ({"protect": {"leave": 3}}, "leave"),
        ({"basis": {"kind": "sympy"}}, "kind"),
        ({"trian": {}}, "'train'"),
    ],
)
def test_wrong_settings_are_one_clear_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        SeparableConceptErasureConfig.parse(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cie", "sepce"])
def test_device_and_precision_are_settings(name: str, tiny: DiffusionModel) -> None:
    chosen = algorithm(name)
    config = chosen.config_class.parse({}).merged({"devices": [0, 1], "train.precision": "bfloat16"})
    assert config.devices == "0,1"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="float32"):
        chosen(config, model=tiny).find_edit()


def test_shipped_files_load() -> None:
    folder = Path(mu.__file__).parent / "algorithms" / "separable_concept_erasure" / "configs"
    kinds = {"cie.yaml": ConceptIrrelevantErasureConfig, "sepce.yaml": SeparableConceptErasureConfig}
    presets = {f"{name.removesuffix('.yaml')}-canvas.yaml" for name in kinds}
    assert {path.name for path in folder.glob("*.yaml")} == set(kinds) | presets
    for name, kind in kinds.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert text.startswith("#") and f"configs/{name}" in text
        assert kind.load(folder / name).concepts


def test_a_room_can_be_looked_at_before_training(tiny: DiffusionModel) -> None:
    method = SeparableConceptErasureAlgorithm(settings(concepts=["star", "heart"]), model=tiny)
    with watched(tiny) as seen:
        first, second = method.capacities()
    assert not seen
    assert (first.concept, second.concept) == ("star", "heart")
    assert "heart" in first.protected and "star" in second.protected
    assert isinstance(method.room(SeparableConceptErasureDataHandler(method.config, tiny), "star"), Room)


# -- in a bank
# --------------------------------------------------------------------------------------------------------------


def test_gates_are_closed_to_sentences_with_the_words_of_the_bank(tiny: DiffusionModel, tmp_path: Path) -> None:
    """Of the edit that comes, for everyday sentences with an older word; of the older, for those with the new one, and
    with all words of the bank if it is of a version without floors."""
    (old,) = find(tiny, settings(concepts=["star"]))
    old.info = replace(old.info, gate=FacilitatedTransport())
    config = settings(concepts=["moon"], protect={"gate": "always", "mend": 0, "others": ["a boat"]})
    method = SeparableConceptErasureAlgorithm(config, model=tiny)
    method.restorable = ["star", "heart"]
    (new,) = method.find_edits()
    run = RunDirectory(tmp_path)
    run.environment.write_text("{}")
    (again,) = method.reconciled([old], [new], run)

    def passed(edit: LowRankEdit, texts: Sequence[str]) -> float:
        return float(prompt_gates(tiny, [edit], [edit.gate], [t for t in texts if tiny.fits(t)]).abs().max())

    def others(edit: LowRankEdit, word: str) -> list[str]:
        return [text for text in sentences_with(word) if edit.concept() not in text]

    assert passed(again, others(again, "moon")) < 1e-6 < 0.05 < passed(old, others(old, "moon")), "control"
    assert passed(again, [*others(again, "heart"), "", *everyday()[:48]]) < 1e-6
    assert passed(new, [*others(new, "star"), "", "a boat"]) < 1e-6
    for edit in (again, new):
        assert passed(edit, sentences_with(edit.concept())) == pytest.approx(1, abs=1e-5)
    assert method.reconciled([again], [new], run) == [], "its floor is as high as it has to be"


def test_a_bank_of_many_words_is_asked_for_a_bounded_number_of_sentences(tiny: DiffusionModel) -> None:
    data = SeparableConceptErasureDataHandler(settings(concepts=["moon"]), tiny)
    data.restorable = [f"{name} {k}" for k in range(10) for name in ("star", "ring", "tree")]
    asked = data.unasked("moon")
    assert len(asked) < 4096 + 64 < len(data.restored("moon"))
    assert all(any(word in text for text in asked) for word in data.restorable), "each is among them"


def test_an_older_shift_is_trained_again_where_sparing_a_new_concept_cost_it_too_much(
    tiny: DiffusionModel, snapshot: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    longer = {"train": {"iterations": 20, "lr": 1e-3}}
    (old,) = find(tiny, settings(concepts=["star"], protect={"prompts": ["a house"]}, **longer))
    method = SeparableConceptErasureAlgorithm(settings(concepts=["moon"], protect={"prompts": ["star"]}), model=tiny)
    weights, before = snapshot(tiny), {prompt: predict(tiny, prompt) for prompt in ("moon", "a house", "")}
    with caplog.at_level(logging.INFO, logger="mu"):
        (again, share), (projected, left) = method.mended(old, ["moon"], 60), method.mended(old, ["moon"], 0)
    assert snapshot(tiny) == weights
    assert left < 0.9 <= share, "projecting alone costs more than a tenth: the control"
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "'star'" in line and "protect.mend" in line], "the one that is not trained again"
    assert [line for line in told if "'star'" in line and "'moon'" not in line and line.count("%") == 2], (
        "the one that is"
    )
    for edit in (again, projected):
        assert set(edit.info.protects) == {"", "a house", "moon"} and edit.info.concepts == ("star",)
        with edit.applied(tiny):
            for prompt, wanted in before.items():
                assert (predict(tiny, prompt) - wanted).abs().max() < 1e-5
    with old.applied(tiny):
        assert (predict(tiny, "moon") - before["moon"]).abs().max() > 1e-4
    # The effect is what the definition says, on the sum of the weights.
    config = SeparableConceptErasureConfig.parse(dict(old.info.config))
    effect = Effect(Bench(tiny, config.merged({"protect.prompts": ["a house", "moon"]})).trainer)
    s = effect.states
    with projected.applied(tiny):
        r = tiny.predict_noise(s.x, s.t, s.c) - tiny.predict_noise(s.x, s.t, s.anchor)
    gone = [float((s.r * s.r).mean() - (r * s.r).mean()), effect.of(old)]
    assert effect.of(projected) == pytest.approx(gone[0], rel=1e-3) and left == pytest.approx(
        gone[0] / gone[1], rel=1e-2
    )


def test_an_older_shift_of_a_calibrated_search_is_trained_again_as_it_was_found(
    tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own phrasings, towards its own anchor, at a rate relative to the weights."""
    (old,) = find(tiny, settings(concepts=["star"], train={"iterations": 20, "lr": 1e-3}))
    config: Any = old.info.config
    around = {"peers": ["heart", "house"], "partners": ["neon"], "others": ["tree"]}
    found = {"templates": ["a {} here", "my {}"], "anchor": "fish", **around}
    calibrated = {**config, "calibrate": {**config["calibrate"], "on": True, "rate": 0.02}}
    calibrated |= {"prompt": {**config["prompt"], "template_anchor": True}}
    method = SeparableConceptErasureAlgorithm(settings(concepts=["moon"], protect={"prompts": ["star"]}), model=tiny)
    room_in, protected = SeparableConceptErasureAlgorithm.room_in, list[dict[str, list[str]]]()
    rates, texts, adam, encoded = [], set[str](), torch.optim.Adam, SeparableConceptErasureDataHandler.encoded

    def noting(weights: Any, lr: float, **options: Any) -> torch.optim.Adam:
        rates.append(lr)
        return adam(weights, lr=lr, **options)

    def in_room(data: SeparableConceptErasureDataHandler, concept: str) -> Room:
        protected.append(data.others(concept, data.config.protect))  # type: ignore[attr-defined]
        return room_in(data, concept)

    def read(self: SeparableConceptErasureDataHandler, text: str) -> Any:
        texts.add(text)
        return encoded(self, text)

    monkeypatch.setattr("mu.algorithms.separable_concept_erasure.algorithm.ENOUGH", 2.0)  # so both are trained again
    monkeypatch.setattr(SeparableConceptErasureAlgorithm, "room_in", staticmethod(in_room))
    monkeypatch.setattr(torch.optim, "Adam", noting)
    monkeypatch.setattr(SeparableConceptErasureDataHandler, "encoded", read)
    for info in (replace(old.info, config=calibrated, found=found), old.info):
        texts.clear()
        method.mended(LowRankEdit(old.factors, info), ["moon"], 2)
        own = {"a star here", "my star", "a fish here", "my fish"}
        assert texts == own if info is not old.info else texts.isdisjoint(own), "control: by the settings"
    weights = [layer.weight for layer in text_layers(tiny).values()]
    assert rates == [pytest.approx(relative_rate(weights, 0.02)), 1e-3]
    search = SeparableConceptErasureDataHandler(settings(concepts=["star"]), tiny)
    search.calibrations = {"star": SimpleNamespace(around=SimpleNamespace(**around))}  # type: ignore[dict-item]
    first = search.others("star", search.config.protect)  # type: ignore[attr-defined]
    assert protected == [first, {}], "beside the same words, no fewer and no more; control: by the settings"
    assert set(first) == {"heart", "house", "neon"}


def test_an_older_shift_of_which_nothing_would_be_left_stays(
    tiny: DiffusionModel, caplog: pytest.LogCaptureFixture
) -> None:
    (old,) = find(tiny, settings(concepts=["star"]))
    method = SeparableConceptErasureAlgorithm(settings(concepts=["star image"]), model=tiny)
    for edit in (old, LowRankEdit(old.factors, EditInfo("sepce", ("star", "moon"), protects=("",)))):
        assert method.mended(edit, ["star image"], 5) == (edit, 1.0)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2 and "'star image'" in told[0]


def test_a_concept_that_begins_what_is_protected_is_refused(tiny: DiffusionModel) -> None:
    with pytest.raises(ConfigError, match="'star image'"):
        room_for(tiny, "star", ["star"], ["heart", "star image"], {}, BasisConfig())
    room_for(tiny, "star", ["star", "a star"], ["star image"], {}, BasisConfig())  # "a star" can still be erased
    room_for(tiny, "star", ["star"], ["a star image", "start"], {}, BasisConfig())
