"""The laws of edits, for every kind of edit; each law stands beside a control that shows the test could fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mu.algorithms.semipermeable_membrane.model import fresh
from mu.core.errors import EditError, OutputError, SelectionError
from mu.diffusion.sampling import generate
from mu.edits.bank import Bank
from mu.edits.edit import Edit, EditInfo, described, is_base
from mu.edits.files import open_edit
from mu.edits.gates import OPEN, FacilitatedTransport
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors, Membrane
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_module, find_parameter, select

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CONV = "unet.mid_block.attentions.0.proj_in.weight"
WIDE = "unet.mid_block.resnets.0.conv1.weight"  # 3x3
KINDS = ("weights", "linear", "conv", "wide", "mixed")


def low_rank(
    model: DiffusionModel, names: tuple[str, ...], rank: int, concept: str = "a", alpha: float = 0.3, seed: int = 0
) -> LowRankEdit:
    g = torch.Generator().manual_seed(seed)
    factors = {}
    for name in names:
        out, *inner = find_parameter(model, name).shape
        up = torch.randn(out, rank, *[1] * (len(inner) - 1), generator=g)
        factors[name] = Factors(torch.randn(rank, *inner, generator=g) * 0.3, up * 0.3, alpha)
    return LowRankEdit(factors, EditInfo(method="test", concepts=(concept,), **described(model, list(names))))


def edit_of(kind: str, model: DiffusionModel, concept: str = "a", seed: int = 0) -> Edit:
    if kind != "weights":
        names = {"linear": (LINEAR,), "conv": (CONV,), "wide": (WIDE,), "mixed": (LINEAR, CONV, WIDE)}[kind]
        return low_rank(model, names, 2, concept, seed=seed)
    g = torch.Generator().manual_seed(seed)
    names = (LINEAR, CONV, "text_encoder.final_layer_norm.bias")
    shifts = {name: torch.randn(find_parameter(model, name).shape, generator=g) * 0.1 for name in names}
    return WeightEdit(shifts, EditInfo(method="test", concepts=(concept,), **described(model, list(names))))


def output(model: DiffusionModel, rows: int = 2) -> Tensor:
    """eps for fixed latents, and prompts that differ."""
    x = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    return model.predict_noise(
        x, 500, model.encode([f"a {word}" for word in ("star", "dog", "hat", "bird")][:rows])
    ).detach()


@pytest.fixture(params=KINDS)
def edit(request: pytest.FixtureRequest, tiny: DiffusionModel) -> Edit:
    return edit_of(request.param, tiny)


@contextmanager
def counted(target: object, name: str) -> Iterator[list[int]]:
    """Counts the calls of ``target.name`` inside the block."""
    real, calls = getattr(target, name), [0]

    def counting(*args: object, **options: object) -> object:
        calls[0] += 1
        return real(*args, **options)

    setattr(target, name, counting)
    try:
        yield calls
    finally:
        setattr(target, name, real)


# -- on and off
# -------------------------------------------------------------------------------------------------------------


def test_it_changes_the_output_and_comes_off_bit_for_bit(edit: Edit, tiny: DiffusionModel, snapshot: Callable) -> None:
    before, weights = output(tiny), snapshot(tiny)
    with edit.applied(tiny):
        changed = output(tiny)
    assert (changed - before).abs().max() > 1e-4
    assert torch.equal(output(tiny), before)
    assert snapshot(tiny) == weights
    assert not any(module._forward_hooks for module in tiny.unet.modules())


def test_it_comes_off_after_an_exception(edit: Edit, tiny: DiffusionModel, snapshot: Callable) -> None:
    before, weights = output(tiny), snapshot(tiny)
    with pytest.raises(RuntimeError, match="inside"), edit.applied(tiny):
        assert not torch.equal(output(tiny), before)
        raise RuntimeError("inside")
    assert torch.equal(output(tiny), before)
    assert snapshot(tiny) == weights


def test_the_snapshot_sees_one_bit(tiny: DiffusionModel, snapshot: Callable) -> None:
    bias = tiny.unet.conv_in.bias
    weights, kept = snapshot(tiny), bias.detach().clone()
    with torch.no_grad():
        bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
        assert snapshot(tiny) != weights
        bias.copy_(kept)
    assert snapshot(tiny) == weights


def test_a_half_applied_edit_comes_off(tiny: DiffusionModel, snapshot: Callable) -> None:
    """The second parameter is lost between the check and the application."""
    edit, weights = edit_of("weights", tiny), snapshot(tiny)
    bank = Bank(tiny, [edit])
    edit.shifts["unet.nowhere.weight"] = torch.zeros(1)  # type: ignore[attr-defined]
    with pytest.raises(EditError), bank.applied():
        pass
    assert snapshot(tiny) == weights


def test_strength_0_is_bit_identical(edit: Edit, tiny: DiffusionModel) -> None:
    before = output(tiny)
    with edit.applied(tiny, strength=0):
        assert torch.equal(output(tiny), before)
    with edit.applied(tiny, strength=1e-3):
        assert not torch.equal(output(tiny), before)


def test_strength_is_linear_in_the_weights(edit: Edit, tiny: DiffusionModel) -> None:
    """-1 and 0.5 are the dense shifts times -1 and 0.5."""
    for strength in (-1.0, 0.5):
        shifts = {name: shift * strength for name, shift in edit.deltas()}
        with WeightEdit(shifts, edit.info).applied(tiny):
            wanted = output(tiny)
        with edit.applied(tiny, strength=strength):
            assert torch.allclose(output(tiny), wanted, atol=2e-6)


# -- low rank and dense
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_low_rank_edit_is_its_dense_twin(kind: str, tiny: DiffusionModel) -> None:
    edit, before = edit_of(kind, tiny), output(tiny)
    twin = WeightEdit(dict(edit.deltas()), edit.info)
    with edit.applied(tiny):
        thin = output(tiny)
    with twin.applied(tiny):
        dense = output(tiny)
    assert torch.allclose(thin, dense, atol=2e-6)
    with twin.applied(tiny, strength=1.01):  # control: a coefficient wrong by 1 %
        assert not torch.allclose(thin, output(tiny), atol=2e-6)
    assert not torch.allclose(thin, before, atol=1e-4)


def test_the_shift_is_alpha_over_rank_up_down(tiny: DiffusionModel) -> None:
    edit = low_rank(tiny, (LINEAR, WIDE), rank=3, alpha=0.7)
    for name, shift in edit.deltas():
        factors = edit.factors[name]
        slow = torch.zeros_like(shift)
        for o in range(min(5, len(slow))):
            for r in range(3):
                slow[o] += 0.7 / 3 * factors.up[o, r].flatten() * factors.down[r]
        assert torch.allclose(shift[:5], slow[:5], atol=1e-6)


def test_a_half_precision_file_acts_in_full_precision(tiny: DiffusionModel) -> None:
    edit = edit_of("mixed", tiny)
    half = LowRankEdit({n: Factors(f.down.half(), f.up.half(), f.alpha) for n, f in edit.factors.items()}, edit.info)
    with WeightEdit(dict(half.deltas()), edit.info).applied(tiny):
        wanted = output(tiny)
    with half.applied(tiny):
        assert torch.allclose(output(tiny), wanted, atol=2e-6)


def test_factors_of_a_convolution_serve_a_linear_layer(tiny: DiffusionModel) -> None:
    """As an SD 1.x file (1x1 projections) on a model with linear ones; merged and beside the layer alike."""
    edit = edit_of("linear", tiny)
    as_conv = {n: Factors(f.down[..., None, None], f.up[..., None, None], f.alpha) for n, f in edit.factors.items()}
    twin = LowRankEdit(as_conv, edit.info)
    with edit.applied(tiny):
        wanted = output(tiny)
    with twin.applied(tiny):
        assert torch.equal(output(tiny), wanted)
    from mu.edits.edit import shifted

    with shifted(tiny, Bank(tiny, [twin]).deltas()):
        assert torch.allclose(output(tiny), wanted, atol=2e-6)


def test_a_fresh_edit_changes_nothing_and_draws_within_the_bounds(tiny: DiffusionModel) -> None:
    layers = tiny.layers("transformer")
    edit = LowRankEdit(fresh(layers, 1, 1.0, torch.Generator().manual_seed(0)), EditInfo("test", ("a",)))
    before = output(tiny)
    with edit.applied(tiny):
        assert torch.equal(output(tiny), before)
    for name, factors in edit.factors.items():
        bound = layers[name].weight[0].numel() ** -0.5
        assert bound * 0.7 < factors.down.abs().max() <= bound
        assert not factors.up.any()


# -- several edits
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", ("weights", "mixed"))
def test_nested_and_banked_edits_are_the_sum(first: str, second: str, tiny: DiffusionModel, snapshot: Callable) -> None:
    a, b = edit_of(first, tiny), edit_of(second, tiny, "b", seed=1)
    weights = snapshot(tiny)
    total: dict[str, Tensor] = {}
    for edit in (a, b):
        for name, shift in edit.deltas():
            total[name] = total.get(name, torch.zeros(())) + shift
    with WeightEdit(total, a.info).applied(tiny):
        wanted = output(tiny)
    with a.applied(tiny), b.applied(tiny):
        assert torch.allclose(output(tiny), wanted, atol=3e-6)
    with Bank(tiny, [a, b]).applied():
        assert torch.allclose(output(tiny), wanted, atol=3e-6)
    with a.applied(tiny):
        assert not torch.allclose(output(tiny), wanted, atol=1e-4)
    assert snapshot(tiny) == weights


def test_edits_of_different_rank_add_up_on_one_layer(tiny: DiffusionModel) -> None:
    edits = [low_rank(tiny, (LINEAR, CONV), rank, f"c{rank}", alpha=rank * 0.4, seed=rank) for rank in (1, 2, 3)]
    x = torch.randn(2, 5, 192, generator=torch.Generator().manual_seed(3))
    layer = find_module(tiny, LINEAR)
    wanted = layer(x)
    for edit, gate in zip(edits, (0.5, -1.0, 2.0), strict=True):
        factors = edit.factors[LINEAR]
        wanted = wanted + gate * factors.alpha / factors.rank * (x @ factors.down.T @ factors.up.T)
    with Bank(tiny, edits).applied(strengths=[0.5, -1.0, 2.0]):
        assert torch.allclose(layer(x), wanted, atol=1e-5)


def test_gates_may_differ_for_each_sample(tiny: DiffusionModel) -> None:
    """(b, J) gates are b models, each with its own strengths, in one batch; twice as long batches repeat them."""
    edits = [edit_of("mixed", tiny, "a"), edit_of("linear", tiny, "b", seed=1)]
    gates = torch.tensor([[1.0, 0.0], [0.3, 2.0], [0.0, 0.0]])
    bank = Bank(tiny, edits)
    rows = []
    for k, strengths in enumerate(gates.tolist()):
        with bank.applied(strengths=strengths):
            rows.append(output(tiny, 3)[k])
    with bank.applied() as membrane:
        membrane.gates = gates
        assert torch.allclose(output(tiny, 3), torch.stack(rows), atol=2e-6)
        x = torch.randn(3, 192)
        layer = find_module(tiny, LINEAR)
        assert torch.allclose(layer(torch.cat([x, x])), layer(x).repeat(2, 1), atol=1e-6)
        with pytest.raises(EditError, match=r"\b3\b.*\b4\b"):
            output(tiny, 4)
        membrane.gates = gates.flip(0)
        assert not torch.allclose(output(tiny, 3), torch.stack(rows), atol=1e-4)


def test_strengths_must_fit(tiny: DiffusionModel) -> None:
    bank = Bank(tiny, [edit_of("linear", tiny, "a"), edit_of("linear", tiny, "b")])
    for strengths in ([1.0], [1.0, 1.0, 1.0]):
        with pytest.raises(EditError, match=rf"\b2\b.*\b{len(strengths)}\b"), bank.applied(strengths=strengths):
            pass
    membrane = Membrane([edit_of("linear", tiny)])  # type: ignore[list-item]
    with pytest.raises(EditError):
        membrane.gates = torch.ones(2)


# -- cost
# -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", (1, 4))
def test_k_membranes_cost_two_thin_products_and_none_when_off(count: int, tiny: DiffusionModel) -> None:
    edits = [low_rank(tiny, (LINEAR,), 1, str(k), seed=k) for k in range(count)]
    layer, x = find_module(tiny, LINEAR), torch.randn(3, 192)
    with counted(F, "linear") as calls, Bank(tiny, edits).applied() as membrane:
        trained = layer(x)
        assert calls[0] == 3  # the layer's own, down, up
        with torch.no_grad():
            torch.testing.assert_close(layer(x), trained)
            torch.testing.assert_close(layer(x[0]), trained[0])
        assert calls[0] == 7, "without gradients, up adds to the layer's own output in place"
        calls[0] = 3
        with membrane.off():
            layer(x)
        assert calls[0] == 4
        membrane.gates = torch.zeros(count)
        layer(x)
        assert calls[0] == 5


# -- the bank
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("weights", "mixed"))
def test_restoring_a_concept_is_leaving_its_edit_out(kind: str, tiny: DiffusionModel) -> None:
    a, b = edit_of(kind, tiny, "a"), edit_of(kind, tiny, "b", seed=1)
    bank, before = Bank(tiny, [a, b]), output(tiny)
    with Bank(tiny, [a]).applied():
        alone = output(tiny)
    bank.restore("b")
    with bank.applied():
        assert torch.equal(output(tiny), alone)
    bank.restore("a")
    with bank.applied():
        assert torch.equal(output(tiny), before)
    bank.erase("b")
    with bank.applied():
        assert not torch.equal(output(tiny), before)
    assert bank.remove("b") is b
    with bank.applied():
        assert torch.equal(output(tiny), before)
    bank.add(b)
    assert bank.on == [b]


def test_the_bank_refuses_a_second_edit_of_a_concept_and_unknown_names(tiny: DiffusionModel) -> None:
    bank = Bank(tiny, [edit_of("linear", tiny, "van gogh")])
    with pytest.raises(EditError, match="'van gogh'"):
        bank.add(edit_of("weights", tiny, "van gogh"))
    for call in (bank.remove, bank.restore, bank.erase):
        with pytest.raises(EditError, match="'van gogh'"):
            call("van gog")


# -- other bases
# ------------------------------------------------------------------------------------------------------------


def test_other_shapes_are_refused(tiny: DiffusionModel) -> None:
    info = EditInfo("test", ("a",))
    wrong: list[Edit] = [
        WeightEdit({LINEAR: torch.zeros(3, 3)}, info),
        WeightEdit({"unet.nowhere.weight": torch.zeros(3)}, info),
        WeightEdit({"vision_model.nowhere.weight": torch.zeros(3)}, info),
        LowRankEdit({LINEAR: Factors(torch.zeros(1, 5), torch.zeros(7, 1), 1.0)}, info),
        LowRankEdit({WIDE: Factors(torch.zeros(1, 128, 1, 1), torch.zeros(128, 1, 1, 1), 1.0)}, info),
    ]
    for edit in wrong:
        (name,) = edit.parameters
        with pytest.raises(EditError, match=name), edit.applied(tiny):
            pass


def test_another_base_of_the_same_shapes_warns(
    tiny: DiffusionModel, edit: Edit, caplog: pytest.LogCaptureFixture
) -> None:
    before = output(tiny)
    with caplog.at_level(logging.WARNING, "mu"):
        with edit.applied(tiny):
            pass
        assert not caplog.records  # the base it was found on
        foreign = replace(edit.info, fingerprint="0" * 32, base="another model")
        stranger = type(edit)(getattr(edit, "factors", None) or edit.shifts, foreign)  # type: ignore[attr-defined]
        with stranger.applied(tiny):
            assert not torch.equal(output(tiny), before)
        assert torch.equal(output(tiny), before)
    assert "another model" in caplog.text


@pytest.mark.parametrize("found_in", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_base_in_another_precision_does_not_warn(
    found_in: torch.dtype, tiny: DiffusionModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Between float32 and a half precision; the two half precisions keep different parts of the weights, and it is
    said."""
    parameter = find_parameter(tiny, LINEAR)
    kept, told = parameter.data, {}
    try:
        parameter.data = kept.to(found_in)
        edit = low_rank(tiny, (LINEAR,), 2)
        for loaded in (torch.float32, torch.float16, torch.bfloat16):
            parameter.data = kept.to(loaded)
            caplog.clear()
            Bank(tiny, [edit])
            told[loaded] = caplog.text
        parameter.data = (kept * 1.01).to(found_in)
        caplog.clear()
        Bank(tiny, [edit])
        assert "'a'" in caplog.text  # control
    finally:
        parameter.data = kept
    for loaded, text in told.items():
        if torch.float32 in (found_in, loaded) or found_in == loaded:
            assert not text
        else:
            assert "half" in text


def test_our_own_edit_is_no_other_base(tiny: DiffusionModel, caplog: pytest.LogCaptureFixture) -> None:
    first, second = edit_of("weights", tiny), edit_of("weights", tiny, "b", seed=1)
    thin = edit_of("linear", tiny, "d")
    with first.applied(tiny):
        found_inside = edit_of("weights", tiny, "c")
        with second.applied(tiny), thin.applied(tiny):
            pass
        with found_inside.applied(tiny):
            pass
    assert not caplog.records
    assert not vars(find_parameter(tiny, LINEAR))  # nothing is left of it
    with second.applied(tiny), found_inside.applied(tiny):  # control: it was found on the model with the first
        pass
    assert len(caplog.records) == 1
    parameter = find_parameter(tiny, LINEAR)
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.mul_(1.01)
    with first.applied(tiny):  # control: another base stays one, inside and outside
        assert len(caplog.records) == 2
        with second.applied(tiny):
            assert len(caplog.records) == 3
    with torch.no_grad():
        parameter.copy_(kept)


def test_the_fingerprint_sees_finetuning_and_not_the_precision(tiny: DiffusionModel) -> None:
    names = [LINEAR, CONV]
    base = described(tiny, names)["fingerprint"]
    parameter = find_parameter(tiny, LINEAR)
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(kept.half())
        assert described(tiny, names)["fingerprint"].split()[0] == base.split()[0]
        parameter.copy_(kept * 1.01)
        assert described(tiny, names)["fingerprint"] != base
        parameter.copy_(kept)
    assert described(tiny, names)["fingerprint"] == base


def test_what_the_fingerprint_notices(tiny: DiffusionModel) -> None:
    """A training, of all tensors or of one, a little; not what lies between the values that it looks at."""
    names, parameter = list(select(tiny, "*")), max(select(tiny, "unet.*").values(), key=Tensor.numel)
    base, kept = described(tiny, names)["fingerprint"], parameter.detach().clone()
    step = parameter.numel() // 4096
    assert step > 1, "this tensor is small enough to be hashed whole"
    g = torch.Generator().manual_seed(0)

    def same(change: Callable[[Tensor], object]) -> bool:
        with torch.no_grad():
            change(parameter.view(-1))
            try:
                return is_base(tiny, names, base)
            finally:
                parameter.copy_(kept)

    assert same(lambda values: None)  # control
    scale = float(kept.abs().mean())
    assert not same(lambda values: values.add_(torch.randn(len(values), generator=g), alpha=1e-3 * scale))
    assert not same(lambda values: values[step].add_(scale))
    assert same(lambda values: values[step + 1].add_(scale)), "not one of the values that are looked at"


# -- files
# ------------------------------------------------------------------------------------------------------------------


def test_saved_and_opened_it_is_the_same(edit: Edit, tiny: DiffusionModel, tmp_path: Path) -> None:
    edit.info = EditInfo(
        method="test",
        concepts=("van gogh, the painter", 'quotes " and ünïcode'),
        base="some/model",
        fingerprint=edit.info.fingerprint,
        gate=FacilitatedTransport(2.0),
        config={"train": {"lr": 1e-4}, "none": None},
        protects=("dog", "cat"),
        seed=188,
        versions={"torch": "9"},
        citation="@misc{x,\n  title = {é}\n}",
    )
    edit.save(tmp_path / "edit.safetensors")
    back = open_edit(tmp_path)
    assert back.info == edit.info
    mine, theirs = dict(edit.deltas()), dict(back.deltas())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    edit.info = back.info = replace(edit.info, gate=OPEN)
    with edit.applied(tiny):
        wanted = output(tiny)
    with back.applied(tiny):
        assert torch.equal(output(tiny), wanted)


def test_an_edit_of_nothing_is_an_error() -> None:
    for make in (WeightEdit, LowRankEdit):
        with pytest.raises(SelectionError):
            make({}, EditInfo("test", ("a",)))


def test_only_safetensors_are_written(edit: Edit, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.safetensors"):
        edit.save(tmp_path / "edit.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        edit.save(tmp_path / "file" / "edit.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


D, U = (
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
)
NOT_EDITS: dict[str, dict[str, Tensor]] = {
    "half a pair": {D: torch.zeros(1, 4)},
    "the other half": {U: torch.zeros(4, 1)},
    "ranks that differ": {D: torch.zeros(1, 4), U: torch.zeros(4, 3)},
    "no dimensions": {D: torch.zeros(()), U: torch.zeros(())},
    "rank 0": {D: torch.zeros(0, 4), U: torch.zeros(4, 0)},
    "another model": {"conv_in.weight": torch.zeros(3)},
    "alpha alone": {"lora_unet_x.alpha": torch.ones(())},
    "nothing": {},
}


@pytest.mark.parametrize("name", NOT_EDITS)
def test_a_file_that_is_no_edit_is_one_clear_error(name: str, tmp_path: Path) -> None:
    save_file(NOT_EDITS[name], tmp_path / "x.safetensors")
    with pytest.raises(EditError) as caught:
        open_edit(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_clear_error(edit: Edit, tmp_path: Path) -> None:
    edit.save(tmp_path / "good.safetensors")
    good = (tmp_path / "good.safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    for content in (
        b"",
        b"\x00",
        good[:7],
        good[:100],
        good[:-1],
        b"PK" + good[2:],
        b"not a file of tensors at all" * 10,
    ):
        path.write_bytes(content)
        with pytest.raises(EditError):
            open_edit(path)
    path.write_bytes(good)  # control
    assert sorted(open_edit(path).parameters) == sorted(edit.parameters)
    with pytest.raises(EditError, match=r"none\.safetensors"):
        open_edit(tmp_path / "none.safetensors")
    with pytest.raises(EditError, match=r" edit\.safetensors"):
        open_edit(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"mu.kind": '"low_rank"'},
        {"mu.kind": '"other"', "mu.format": "1"},
        {"mu.kind": "{", "mu.format": "1"},
        {"mu.format": "99"},
        {
            "mu.kind": '"weights"',
            "mu.format": "1",
            "mu.method": '"m"',
            "mu.concepts": "[]",
            "mu.protects": "[]",
            "mu.other": "1",
        },
    ],
)
def test_metadata_that_is_not_an_edits_is_one_clear_error(metadata: dict[str, str], tmp_path: Path) -> None:
    save_file({"a.shift": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(EditError):
        open_edit(tmp_path / "x.safetensors")


def test_images_change_and_change_back(tiny: DiffusionModel) -> None:
    edit = edit_of("mixed", tiny)
    ask = {"prompts": ["a star", "a dog"], "seeds": [1, 2], "steps": 2}
    before = generate(tiny, **ask)
    with edit.applied(tiny):
        assert not torch.equal(generate(tiny, **ask), before)
    assert torch.equal(generate(tiny, **ask), before)


def test_layers_of_the_tests_are_what_they_are_said_to_be(tiny: DiffusionModel) -> None:
    assert isinstance(find_module(tiny, LINEAR), nn.Linear)
    assert isinstance(find_module(tiny, CONV), nn.Conv2d)
    assert find_parameter(tiny, WIDE).shape[-2:] == (3, 3)


def test_an_edit_with_broken_numbers_is_not_saved(tmp_path: Path) -> None:
    edit = WeightEdit({"unet.a.weight": torch.tensor([1.0, float("nan")])}, EditInfo("test", ("a",)))
    with pytest.raises(EditError, match=r"unet\.a\.weight"):
        edit.save(tmp_path / "e.safetensors")
    assert not (tmp_path / "e.safetensors").exists()
