"""A gate belongs to its edit: our sampler, an own loop and the stock pipeline meet the same gated edit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mu.algorithms.semipermeable_membrane.model import fresh
from mu.core.errors import DataError, EditError
from mu.diffusion.denoising import denoise, guided_noise, initial_noise
from mu.diffusion.sampling import generate
from mu.edits.bank import Bank
from mu.edits.edit import Edit, EditInfo
from mu.edits.gatekeeper import Gatekeeper, closed_to, prompt_gates
from mu.edits.gates import OPEN, FacilitatedTransport, FixedStrength, Gate, Metric
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.weights import WeightEdit
from mu.models import load
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.models.parameters import find_parameter, fingerprint, select

PROMPTS = ["a dog", "a star by van", "night sky by van gogh", ""]
SEEDS = [1, 2, 3, 4]
NEGATIVE = "dog"
FAMILY = ("tiny", "tiny_v", "tiny_xl")


@pytest.fixture(params=FAMILY, scope="module")
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    return request.getfixturevalue(request.param)


def low_rank(model: DiffusionModel, concepts: tuple[str, ...], seed: int, gate: Gate = OPEN) -> LowRankEdit:
    """Large enough to change images on every layer of the transformers."""
    g = torch.Generator().manual_seed(seed)
    edit = LowRankEdit(fresh(model.layers("transformer"), 1, 1.0, g), EditInfo("test", concepts, gate=gate))
    for factors in edit.factors.values():
        factors.up.data = 0.3 * torch.randn(factors.up.shape, generator=g)
    return LowRankEdit(
        {n: Factors(f.down.detach(), f.up.detach(), f.alpha) for n, f in edit.factors.items()}, edit.info
    )


def dense(model: DiffusionModel) -> WeightEdit:
    g = torch.Generator().manual_seed(9)
    weights = model.parameters("text-values")
    return WeightEdit(
        {n: 0.3 * torch.randn(w.shape, generator=g) for n, w in weights.items()}, EditInfo("test", ("star",))
    )


# -- scores
# -----------------------------------------------------------------------------------------------------------------


def scores(model: DiffusionModel, prompts: list[str], concepts: list[list[str]], gate: FacilitatedTransport) -> Tensor:
    keeper = Gatekeeper(model, concepts, [gate] * len(concepts), [1.0] * len(concepts))
    return keeper(model.encode(prompts))


def test_the_local_score_is_the_share_of_the_concepts_tokens(tiny: DiffusionModel) -> None:
    assert len(tiny.text[0].tokenizer("van gogh").input_ids) == 4  # start, two names, end
    long = "the night sky in the style of van gogh"
    found = scores(
        tiny,
        [long, "a van", "gogh gogh van", "a dog", ""],
        [["van gogh"], ["dog"]],
        FacilitatedTransport(metric="tokenuni"),
    )
    assert found.tolist() == [[1, 0], [0.5, 0], [1, 0], [0, 1], [0, 0]]


def cosine(model: DiffusionModel, a: str, b: str) -> float:
    x, y = (model.encode([text]).sequence.flatten() for text in (a, b))
    return float(F.cosine_similarity(x, y, dim=0))


def test_the_global_score_is_the_cosine_of_all_positions(tiny: DiffusionModel) -> None:
    prompts, concepts = ["a star", "a dog in neon style"], [["neon"], ["dog"]]
    found = scores(tiny, prompts, concepts, FacilitatedTransport(metric="clipcos"))
    for i, prompt in enumerate(prompts):
        for j, (concept,) in enumerate(concepts):
            assert float(found[i, j]) == pytest.approx(cosine(tiny, prompt, concept), abs=1e-5)
    assert float(scores(tiny, ["neon"], [["neon"]], FacilitatedTransport(metric="clipcos"))) == pytest.approx(
        1, abs=1e-5
    )


def test_gamma_is_the_largest_score_times_the_factor(tiny: DiffusionModel) -> None:
    """Of several concepts and both likenesses; strengths and fixed gates beside it."""
    gates = [FacilitatedTransport(1.5), FixedStrength(0.7), FacilitatedTransport(metric="allone")]
    concepts, strengths = [["van gogh", "star"], ["x"], ["dog"]], [0.5, 2.0, 3.0]
    found = Gatekeeper(tiny, concepts, gates, strengths)(tiny.encode(["a van", "a dog"]))
    shared = {"a van": 0.5, "a dog": 0.0}
    for row, prompt in enumerate(shared):
        best = max(shared[prompt], cosine(tiny, prompt, "van gogh"), cosine(tiny, prompt, "star"))
        assert found[row].tolist() == pytest.approx([1.5 * 0.5 * best, 0.7 * 2.0, 3.0], abs=1e-5)
    with pytest.raises(DataError, match="concepts"):
        scores(tiny, ["a"], [[]], FacilitatedTransport())
    with pytest.raises(DataError, match="' '"):
        scores(tiny, ["a"], [[" "]], FacilitatedTransport())


# -- whoever runs the model
# -------------------------------------------------------------------------------------------------

Runner = Callable[[DiffusionModel], Tensor]


def our_sampler(model: DiffusionModel) -> Tensor:
    return generate(model, PROMPTS, SEEDS, steps=3, guidance=4.0, negative=NEGATIVE, batch=4)


def one_by_one(model: DiffusionModel) -> Tensor:
    return generate(model, PROMPTS, SEEDS, steps=3, guidance=4.0, negative=NEGATIVE, batch=1)


def own_loop(model: DiffusionModel) -> Tensor:
    """Each half of the guidance in a call of its own, with texts encoded inside the block."""
    cond, uncond = model.encode(PROMPTS), model.encode([NEGATIVE]).repeat(len(PROMPTS))
    return model.decode(loop_over(model, cond, uncond.guiding(cond)))


def own_loop_of_halves(model: DiffusionModel) -> Tensor:
    """Both halves in one call, put together by hand."""
    both = Conditioning.cat([model.encode([NEGATIVE]).repeat(len(PROMPTS)), model.encode(PROMPTS)])
    size = model.default_size
    x = initial_noise(model, size, size, [torch.Generator().manual_seed(seed) for seed in SEEDS])
    scheduler = model.new_scheduler(3)
    x = x * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = guided_noise(model, scheduler.scale_model_input(x, t), t, both, 4.0, raw=True)
            x = scheduler.step(out, t, x).prev_sample
    return model.decode(x)


def loop_over(model: DiffusionModel, cond: Conditioning, uncond: Conditioning) -> Tensor:
    size = model.default_size
    x = initial_noise(model, size, size, [torch.Generator().manual_seed(seed) for seed in SEEDS])
    scheduler = model.new_scheduler(3)
    x = x * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            out, nothing = (model.predict(scaled, t, half) for half in (cond, uncond))
            x = scheduler.step(nothing + 4.0 * (out - nothing), t, x).prev_sample
    return x


def stock_pipeline(model: DiffusionModel, **prompts: Any) -> Tensor:
    size = model.default_size
    noise = initial_noise(model, size, size, [torch.Generator().manual_seed(seed) for seed in SEEDS])
    model.pipeline.set_progress_bar_config(disable=True)
    asked = prompts or {"prompt": PROMPTS, "negative_prompt": [NEGATIVE] * len(PROMPTS)}
    return model.pipeline(
        **asked, latents=noise, num_inference_steps=3, guidance_scale=4.0, height=size, width=size, output_type="pt"
    ).images


KINDS: dict[str, Callable[[DiffusionModel], AbstractContextManager[Any]]] = {
    "facilitated transport": lambda m: low_rank(m, ("van gogh",), 0, FacilitatedTransport()).applied(m),
    "cosine alone, twice as strong": lambda m: low_rank(m, ("dog",), 0, FacilitatedTransport(2.0, "clipcos")).applied(
        m, 0.5
    ),
    "tokens alone": lambda m: low_rank(m, ("van gogh",), 0, FacilitatedTransport(metric="tokenuni")).applied(m),
    "the released arithmetic": lambda m: low_rank(
        m, ("van gogh", "star"), 0, FacilitatedTransport(arithmetic="reference")
    ).applied(m),
    "fixed": lambda m: low_rank(m, ("van gogh",), 0, FixedStrength(0.5)).applied(m),
    "dense": lambda m: dense(m).applied(m),
    "a bank of all": lambda m: Bank(
        m,
        [dense(m), low_rank(m, ("van gogh",), 0, FacilitatedTransport()), low_rank(m, ("dog",), 1, FixedStrength(0.3))],
    ).applied(),
}


@pytest.fixture(scope="module")
def base(model: DiffusionModel) -> Tensor:
    """Images without any edit."""
    return our_sampler(model)


@pytest.mark.parametrize("kind", KINDS)
def test_our_sampler_an_own_loop_and_the_stock_pipeline_agree(kind: str, model: DiffusionModel, base: Tensor) -> None:
    with KINDS[kind](model):
        wanted = our_sampler(model)
        for run in (one_by_one, own_loop, own_loop_of_halves, stock_pipeline):
            assert torch.allclose(run(model), wanted, atol=2e-4), run.__name__
    assert not torch.allclose(wanted, base, atol=5e-3), "control: the edit acts"
    assert torch.equal(our_sampler(model), base), "and comes off"


def test_the_prompts_of_the_law_are_gated_in_part_and_unlike(model: DiffusionModel) -> None:
    """Control of the law: gates strictly between 0 and 1, other ones for other prompts, and images that show it when
    ungated."""
    edit = low_rank(model, ("van gogh",), 0, FacilitatedTransport())
    gates = prompt_gates(model, [edit], [edit.info.gate], [*PROMPTS, NEGATIVE]).flatten()
    assert ((gates > 0.05) & (gates < 0.95)).sum() >= 3
    assert len({round(float(g), 3) for g in gates}) >= 4
    with edit.applied(model):
        gated = our_sampler(model)
    with Bank(model, [edit]).applied(gate=OPEN):
        for run in (our_sampler, own_loop, stock_pipeline):
            assert not torch.allclose(run(model), gated, atol=5e-3)


def test_halves_put_together_by_hand_are_known_by_their_latents(tiny: DiffusionModel) -> None:
    """With an empty negative prompt. Control: at other latents, or beside another prompt, each row has its own gate."""
    edit = low_rank(tiny, ("van gogh",), 0, FacilitatedTransport())
    own = prompt_gates(tiny, [edit], [edit.info.gate], ["", "a star by van"]).flatten().tolist()
    x, other = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with edit.applied(tiny) as membrane:
        for latents, first, wanted in (
            ([x, x], "", [own[1], own[1]]),
            ([x, other], "", own),
            ([x, x], "a star by van", [own[1], own[1]]),
        ):
            both = Conditioning.cat([tiny.encode([first]), tiny.encode(["a star by van"])])
            tiny.predict_noise(torch.cat(latents), 500, both)
            assert membrane.gates.flatten().tolist() == pytest.approx(wanted, abs=1e-5)
        tiny.predict_noise(torch.cat([x, x]), 500, Conditioning.cat([tiny.encode(["dog"]), tiny.encode(["van gogh"])]))
        assert float(membrane.gates[0]) < 0.9 < float(membrane.gates[1])


def test_texts_encoded_before_the_edit_went_on_are_known_in_our_calls(model: DiffusionModel) -> None:
    cond, uncond = model.encode(PROMPTS), model.encode([NEGATIVE]).repeat(len(PROMPTS))
    with low_rank(model, ("van gogh",), 0, FacilitatedTransport(metric="tokenuni")).applied(model):
        assert torch.allclose(model.decode(loop_over(model, cond, uncond.guiding(cond))), our_sampler(model), atol=2e-4)
        unpaired = model.decode(loop_over(model, cond, uncond))
        assert not torch.allclose(unpaired, our_sampler(model), atol=5e-3), "control: each half by its own prompt"


def test_embeddings_that_no_prompt_explains_are_gated_by_themselves(model: DiffusionModel) -> None:
    """A foreign caller's: the cosine is theirs, and no token counts. Also where they are mixed with a prompt's."""
    found = model.encode(PROMPTS)
    g = torch.Generator().manual_seed(0)
    soft = Conditioning(
        found.sequence + 0.3 * torch.randn(found.sequence.shape, generator=g), found.pooled, found.time_ids
    )
    edit = low_rank(model, ("van gogh",), 0, FacilitatedTransport())
    keeper = Gatekeeper(model, [["van gogh"]], [FacilitatedTransport(metric="clipcos")], [1.0])
    with edit.applied(model) as membrane:
        pooled = (
            {}
            if soft.pooled is None
            else {"pooled_prompt_embeds": soft.pooled, "negative_pooled_prompt_embeds": found.pooled}
        )
        stock_pipeline(model, prompt_embeds=soft.sequence, negative_prompt_embeds=found.sequence, **pooled)
        wanted = keeper(Conditioning(soft.sequence)).repeat(2, 1)
        assert torch.allclose(membrane.gates, wanted, atol=1e-6), "in both halves"
        mixed = Conditioning.cat([soft[:1], model.encode(["van gogh"])])
        model.predict_noise(torch.zeros(2, 4, 8, 8), 500, mixed)
        assert membrane.gates[1] == pytest.approx(1, abs=1e-5)
        assert membrane.gates[0] == pytest.approx(float(keeper(soft)[0]), abs=1e-5)


def test_concepts_are_encoded_once_and_prompts_once_a_batch(tiny: DiffusionModel) -> None:
    calls: list[int] = []
    handle = tiny.text[0].module.register_forward_hook(lambda *_: calls.append(1))
    try:
        edits: list[Edit] = [
            low_rank(tiny, (name,), k, FacilitatedTransport()) for k, name in enumerate(("van gogh", "dog", "star"))
        ]
        with Bank(tiny, edits).applied():
            assert len(calls) == 1, "all concepts in one call"
            generate(tiny, PROMPTS, SEEDS, steps=4, batch=2)
        assert len(calls) == 1 + 1 + 2, "the negative prompt, and two batches"
    finally:
        handle.remove()


# -- gradients
# --------------------------------------------------------------------------------------------------------------


def test_gradients_reach_the_prompt_through_text_and_gate(model: DiffusionModel) -> None:
    """By finite differences of soft prompts; control: the gradient with the gate held fixed is another one."""
    tokens = model.tokens(["a star by van"])
    embeddings = [e.detach().clone() for e in model.token_embeddings(tokens)]
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def loss(soft: list[Tensor]) -> Tensor:
        return model.predict_noise(x, 500, model.encode_embeddings(tokens, soft)).square().sum()

    edit = low_rank(model, ("van gogh",), 0, FacilitatedTransport(metric="clipcos"))
    with edit.applied(model) as membrane:
        soft = [e.clone().requires_grad_() for e in embeddings]
        (grad, *_) = torch.autograd.grad(loss(soft), soft)
        step = 1e-2 * grad / grad.norm()
        with torch.no_grad():
            up, down = (loss([embeddings[0] + sign * step, *embeddings[1:]]) for sign in (1, -1))
        slope = float(up - down) / 2e-2
        assert slope == pytest.approx(float(grad.norm()), rel=0.05)
        held = membrane.gates.detach().clone()
    with Bank(model, [edit]).applied(gate=FixedStrength(float(held))):
        soft = [e.clone().requires_grad_() for e in embeddings]
        (fixed, *_) = torch.autograd.grad(loss(soft), soft)
    assert not torch.allclose(fixed, grad, rtol=1e-2)


def test_soft_prompts_of_a_prompts_own_embeddings_are_the_prompt(model: DiffusionModel) -> None:
    tokens = model.tokens(PROMPTS)
    plain, soft = model.encode(PROMPTS), model.encode_embeddings(tokens, model.token_embeddings(tokens))
    assert torch.allclose(soft.sequence, plain.sequence, atol=1e-6)
    assert plain.pooled is None or torch.allclose(soft.pooled, plain.pooled, atol=1e-6)  # type: ignore[arg-type]
    assert plain.tokens is not None and soft.tokens is None
    assert not plain.sequence.requires_grad
    other = model.encode_embeddings(tokens, [e.flip(-1) for e in model.token_embeddings(tokens)])
    assert not torch.allclose(other.sequence, plain.sequence, atol=1e-2)


def test_denoising_and_images_can_be_differentiated(tiny: DiffusionModel) -> None:
    c = tiny.encode(["a star"])
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for gradients in (True, False):
        x = start.clone().requires_grad_()
        latents = denoise(tiny, x, c, c, tiny.new_scheduler(2), gradients=gradients)
        again = tiny.encode_images(tiny.decode(latents, gradients=gradients), gradients=gradients)
        assert again.requires_grad is gradients
    with pytest.raises(RuntimeError):
        again.sum().backward()


# -- refused
# ----------------------------------------------------------------------------------------------------------------


def test_a_gate_that_reads_what_its_edit_changes_is_refused(tiny: DiffusionModel) -> None:
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    out, inner = find_parameter(tiny, name).shape
    edit = LowRankEdit({name: Factors(torch.ones(1, inner), torch.ones(out, 1), 1.0)}, EditInfo("test", ("dog",)))
    with edit.applied(tiny):
        pass
    edit.info = replace(edit.info, gate=FacilitatedTransport())
    with pytest.raises(EditError, match="dog") as caught, edit.applied(tiny):
        pass
    assert name in str(caught.value)


# -- a floor
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["clipcos", "tokenuni", "clipcos_tokenuni"])
def test_a_floor_passes_nothing_below_and_the_concept_as_before(tiny: DiffusionModel, metric: Metric) -> None:
    prompts, concepts = ["van gogh", "a van", "a dog in neon style", ""], [["van gogh"], ["dog", "neon"]]
    forms = [["van gogh", "van goghs"], ["dog", "dogs", "neon", "neons"]]
    published = scores(tiny, prompts, forms, FacilitatedTransport(2.0, metric)) / 2
    floor = float(published[2, 0].clamp(min=0.1)) + 1e-3
    found = scores(tiny, prompts, concepts, FacilitatedTransport(2.0, metric, floor=floor))
    torch.testing.assert_close(found, 2 * (published - floor).clamp(min=0) / (1 - floor))
    assert float(found[0, 0]) == pytest.approx(2, abs=1e-5) and float(found[2, 0]) == 0


def test_without_a_floor_unlike_prompts_are_gated_as_published(tiny: DiffusionModel) -> None:
    keeper = Gatekeeper(tiny, [["dog"]], [FacilitatedTransport(metric="clipcos")], [1.0])
    away = replace(tiny.encode(["star"]), sequence=-tiny.encode(["dog"]).sequence)
    assert float(keeper(away)) == pytest.approx(-1, abs=1e-5)


def test_a_gate_is_closed_to_prompts_that_do_not_name_the_concept(tiny: DiffusionModel) -> None:
    prompts = ["", "a dog", "a van in the rain", "one star and a house"]
    named = ["a house by van gogh", "van gogh", "two van goghs"]
    gate, other = closed_to(
        [*prompts, *named], [FacilitatedTransport(), FacilitatedTransport()], tiny, [["van gogh"], ["dog"]]
    )
    found = scores(tiny, [*prompts, *named], [["van gogh"]], gate).flatten()
    published = scores(tiny, prompts, [["van gogh"]], FacilitatedTransport())
    assert found[: len(prompts)].max() < 1e-6 < 0.1 < published.max(), "control: the published gate passes some"
    torch.testing.assert_close(found[len(prompts) :], torch.ones(3))
    assert 0 < other.floor != gate.floor, "each edit has its own"
    assert closed_to(["a dog"], [gate], tiny, [["van gogh"]]) == [gate], "a floor never falls"
    assert closed_to(["van gogh"], [FacilitatedTransport()], tiny, [["van gogh"]]) == [FacilitatedTransport()]
    assert closed_to([], [FacilitatedTransport()], tiny, [["van gogh"]]) == [FacilitatedTransport()]


def test_no_floor_is_so_high_that_the_gate_is_a_switch(tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mu.edits.gatekeeper.HIGHEST_FLOOR", 0.2)
    assert closed_to(["a van"], [FacilitatedTransport()], tiny, [["van gogh"]])[0].floor == 0.2
    assert closed_to(["a van"], [FacilitatedTransport(floor=0.4)], tiny, [["van gogh"]])[0].floor == 0.4


def test_embeddings_of_no_known_prompt_have_no_floor(tiny: DiffusionModel) -> None:
    """They may name the concept: without token ids only the cosine tells."""
    gate, prompts = FacilitatedTransport(metric="clipcos_tokenuni", floor=0.9), ["a house by van gogh", "a dog"]
    keeper, known = Gatekeeper(tiny, [["van gogh"]], [gate], [1.0]), tiny.encode(prompts)
    soft = replace(known, tokens=None)
    assert known.tokens is not None
    mixed = replace(known, tokens=torch.where(torch.tensor([[False], [True]]), known.tokens, -1))
    cosines = torch.tensor([[cosine(tiny, prompt, "van gogh")] for prompt in prompts])
    assert float(keeper(known)[0]) == pytest.approx(1, abs=1e-5) and float(keeper(known)[1]) == 0
    torch.testing.assert_close(keeper(soft), cosines, atol=1e-5, rtol=0)
    torch.testing.assert_close(keeper(mixed), torch.stack([cosines[0], torch.zeros(1)]), atol=1e-5, rtol=0)


# -- what a cache or a hook could get wrong -----------------------------------------------------------------------------


def test_the_same_rows_beside_other_prompts_are_gated_anew(tiny: DiffusionModel) -> None:
    edit = low_rank(tiny, ("dog",), 0, FacilitatedTransport())
    uncond, dog, star = (tiny.encode([text]) for text in ("", "dog", "star"))
    x = torch.zeros(1, 4, 8, 8)
    with edit.applied(tiny) as membrane, torch.no_grad():
        found = []
        for conditioning in (uncond.guiding(dog), uncond.guiding(star), uncond, uncond.guiding(dog)):
            tiny.predict_noise(x, 500, conditioning)
            found.append(float(membrane.gates))
    assert found[0] == found[3] == pytest.approx(1, abs=1e-5)
    assert len({round(gate, 3) for gate in found}) == 3


def test_two_prompts_at_equal_latents_are_no_halves_without_guidance(tiny: DiffusionModel) -> None:
    edit = low_rank(tiny, ("dog",), 0, FacilitatedTransport())
    tiny.pipeline.set_progress_bar_config(disable=True)
    own = prompt_gates(tiny, [edit], [edit.info.gate], ["dog", "star"]).flatten().tolist()
    asked: dict[str, Any] = {"latents": torch.ones(2, 4, 8, 8), "num_inference_steps": 1, "height": 64, "width": 64}
    with edit.applied(tiny) as membrane:
        tiny.pipeline(["dog", "star"], guidance_scale=1.0, **asked)
        assert membrane.gates.flatten().tolist() == pytest.approx(own, abs=1e-5)
        tiny.pipeline(["dog", "star"], guidance_scale=4.0, **asked)
        assert membrane.gates.flatten().tolist() == pytest.approx([*own, *own], abs=1e-5)
        tiny.pipeline(["dog", "star"], guidance_scale=4.0, num_images_per_prompt=2, **asked | {"latents": None})
        each = [own[0], own[0], own[1], own[1]]
        assert membrane.gates.flatten().tolist() == pytest.approx([*each, *each], abs=1e-5)


def test_off_is_off_also_for_a_gated_edit(tiny: DiffusionModel) -> None:
    edit = low_rank(tiny, ("dog",), 0, FacilitatedTransport())
    x, dog, star = torch.ones(1, 4, 8, 8), tiny.encode(["dog"]), tiny.encode(["star"])
    base = tiny.predict_noise(x, 500, star)
    with edit.applied(tiny) as membrane:
        on = tiny.predict_noise(x, 500, star)
        tiny.predict_noise(x, 500, dog)
        with membrane.off():
            assert torch.equal(tiny.predict_noise(x, 500, star), base)
        assert torch.equal(tiny.predict_noise(x, 500, star), on) and not torch.equal(on, base)


def test_a_fixed_edit_of_the_text_encoder_goes_with_a_gated_one(tiny: DiffusionModel) -> None:
    """Prompts are encoded before they are known: the text encoder's layers keep their fixed strength."""
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    out, inner = find_parameter(tiny, name).shape
    text = LowRankEdit(
        {name: Factors(torch.ones(1, inner), 0.1 * torch.ones(out, 1), 1.0)}, EditInfo("test", ("star",))
    )
    alone = tiny.encode(["a dog"]).sequence
    with text.applied(tiny):
        wanted = tiny.encode(["a dog"]).sequence
    with Bank(tiny, [text, low_rank(tiny, ("dog",), 0, FacilitatedTransport())]).applied():
        generate(tiny, PROMPTS[:2], SEEDS[:2], steps=1)
        assert torch.equal(tiny.encode(["a dog"]).sequence, wanted) and not torch.equal(wanted, alone)


def test_what_a_bank_says_of_gates_is_what_it_applies(tiny: DiffusionModel) -> None:
    """Also with a dense edit of the text encoder on, whose embeddings the gate reads."""
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    noise = torch.randn(find_parameter(tiny, name).shape, generator=torch.Generator().manual_seed(0))
    gated = low_rank(tiny, ("dog",), 0, FacilitatedTransport(metric="clipcos"))
    bank = Bank(tiny, [WeightEdit({name: noise}, EditInfo("test", ("star",))), gated])
    with bank.applied() as membrane:
        assert membrane is not None
        tiny.predict_noise(torch.zeros(1, 4, 8, 8), 500, tiny.encode(["a star"]))
        applied = float(membrane.gates)  # type: ignore[arg-type]
    assert float(bank.gates(["a star"])[0, 1]) == pytest.approx(applied, abs=1e-5)
    assert float(Bank(tiny, [gated]).gates(["a star"])) != pytest.approx(applied, abs=1e-2), "control"


def test_fused_projections_are_refused(tiny_folder: Any) -> None:
    model = load(tiny_folder, device="cpu")
    assert isinstance(model, DiffusionModel)
    edit = low_rank(model, ("dog",), 0)
    with edit.applied(model):
        pass
    model.pipeline.fuse_qkv_projections(vae=False)
    with pytest.raises(EditError, match="unfuse_qkv_projections"), edit.applied(model):
        pass


def test_folded_edits_are_the_same_edits_and_come_off(tiny: DiffusionModel) -> None:
    """Fixed gates go into the weights; a gate that reads the prompt cannot, and stays in the membrane."""
    fixed = [low_rank(tiny, ("van gogh",), 0, FixedStrength(0.5)), low_rank(tiny, ("dog",), 1, OPEN)]
    gated = low_rank(tiny, ("star",), 2, FacilitatedTransport())
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    before = fingerprint(tiny, select(tiny, "*"))

    def predicted(edits: list[LowRankEdit], fold: bool) -> tuple[Tensor, bool]:
        with Bank(tiny, edits).applied(fold=fold) as membrane:
            return tiny.predict_noise(x, 500, tiny.encode(["a star"])), membrane is not None

    for edits, through in ((fixed, False), ([*fixed, gated], True)):
        (apart, hooked), (folded, left) = predicted(edits, False), predicted(edits, True)
        assert hooked and left is through
        assert torch.allclose(folded, apart, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(folded, predicted(edits[1:], True)[0], rtol=1e-2, atol=1e-2), (
            "control: one is missing"
        )
    assert fingerprint(tiny, select(tiny, "*")) == before


def test_latents_may_be_given_by_name(tiny: DiffusionModel) -> None:
    """As an own loop may call the network."""
    edit = low_rank(tiny, ("star",), 3, FacilitatedTransport())
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    with torch.no_grad(), Bank(tiny, [edit]).applied():
        e = tiny.pipeline.text_encoder(tiny.tokens(["a star", "a dog"])[0])[0]
        by_place = tiny.backbone(x, t, e).sample
        assert torch.equal(tiny.backbone(sample=x, timestep=t, encoder_hidden_states=e).sample, by_place)
        assert not torch.equal(tiny.backbone(x, t, e.flip(0)).sample, by_place), "control"
