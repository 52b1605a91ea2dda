"""Parameters by name: selection is never empty, and a name is one tensor."""

from __future__ import annotations

import pytest
import torch

from mu.core.errors import EditError, SelectionError
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_module, find_parameter, fingerprint, select


def test_select_finds_by_pattern_in_model_order(tiny: DiffusionModel) -> None:
    keys = select(tiny, "unet.*attn2.to_k.weight")
    assert keys
    assert all(name.startswith("unet.") and name.endswith("attn2.to_k.weight") for name in keys)
    assert all(find_parameter(tiny, name) is parameter for name, parameter in keys.items())
    both = select(tiny, ["text_encoder.*", "unet.conv_in.*"])
    order = [f"{part}.{name}" for part, module in tiny.components.items() for name, _ in module.named_parameters()]
    assert list(both) == [name for name in order if name in both]
    assert len(select(tiny, "*")) == len(order)


@pytest.mark.parametrize("patterns", ["unet.*.attn3.*", ["unet.*", "unett.*"], "", "UNET.*"])
def test_a_pattern_that_matches_nothing_is_an_error(patterns: str | list[str], tiny: DiffusionModel) -> None:
    with pytest.raises(SelectionError) as refused:
        select(tiny, patterns)
    assert repr(patterns if isinstance(patterns, str) else patterns[-1]) in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_kk.weight",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        ),
        ("text_encoder.layers.1.mlp.fc11.weight", "text_encoder.encoder.layers.1.mlp.fc1.weight"),
        ("*layers.1.mlp.fc11.weight", "text_encoder.encoder.layers.1.mlp.fc1.weight"),
    ],
)
def test_the_error_tells_the_nearest_name_also_of_one_far_off(pattern: str, near: str, tiny: DiffusionModel) -> None:
    with pytest.raises(SelectionError, match=f"'{near}'"):
        select(tiny, pattern)


@pytest.mark.parametrize(
    "name", ["unet.nowhere.weight", "vision_model.x.weight", "unet.conv_in", "unet.conv_in.kernel_size", "unet", ""]
)
def test_a_name_that_is_no_parameter_is_an_error(name: str, tiny: DiffusionModel) -> None:
    with pytest.raises(EditError, match=f"'{name}'"):
        find_module(tiny, name)


def test_a_fingerprint_is_of_these_tensors_in_any_order(tiny: DiffusionModel) -> None:
    names = list(select(tiny, "unet.mid_block.*"))
    assert fingerprint(tiny, names) == fingerprint(tiny, names[::-1])
    assert fingerprint(tiny, names) != fingerprint(tiny, names[1:])
    value = find_parameter(tiny, names[0])
    full, sampled, kept = fingerprint(tiny, names), fingerprint(tiny, names, 64), value.detach().clone()
    with torch.no_grad():
        value.mul_(1.01)
        assert fingerprint(tiny, names) != full
        assert fingerprint(tiny, names, 64) != sampled
        value.copy_(kept)
    assert (fingerprint(tiny, names), fingerprint(tiny, names, 64)) == (full, sampled)
