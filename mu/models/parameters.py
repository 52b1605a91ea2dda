"""Names of parameters: ``<component>.<path in the component>``, the same for all models that share the component."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from mu.core.errors import EditError, ModelError, SelectionError, quoted, titled

BEFORE_EDITS = "before_edits"
"""Attribute of an edited parameter: its tensor before the first edit."""


class EditableModel(Protocol):
    """The attributes of a model that edits use."""

    name: str

    @property
    def components(self) -> Mapping[str, nn.Module]: ...


def select(model: EditableModel, patterns: str | Iterable[str]) -> dict[str, nn.Parameter]:
    """Parameters whose full name matches one of the shell-style ``patterns``, in model order. Never empty.

    Raises `SelectionError`, with the nearest name, for a pattern that matches nothing: its edit would do nothing.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    named = {f"{part}.{name}": p for part, module in model.components.items() for name, p in module.named_parameters()}
    for pattern in patterns:
        if not fnmatch.filter(named, pattern):
            closest = difflib.get_close_matches(pattern, named, n=1, cutoff=0)
            raise SelectionError(
                f"no parameter of {titled(model.name)} matches {quoted(pattern)}: the nearest is {titled(closest[0])}"
            )
    chosen = [name for name in named if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return {name: named[name] for name in chosen}


def find_module(model: EditableModel, parameter: str) -> nn.Module:
    """The layer that owns ``parameter`` (``unet.mid_block....to_q.weight``); `EditError` if the model lacks it."""
    component, *path = parameter.split(".")
    attribute = path.pop() if path else ""
    try:
        parent = module = model.components[component]
        for name in path:
            parent, module = module, _child(module, name)
        if not isinstance(getattr(module, attribute), nn.Parameter):
            raise AttributeError
    except (KeyError, AttributeError):
        raise EditError(
            f"{titled(model.name)} has no parameter {quoted(parameter)}: the edit was made for another architecture"
        ) from None
    if getattr(parent, "fused_projections", False):
        raise EditError(
            f"{quoted(parameter)} has no effect while projections are fused: call unfuse_qkv_projections() first"
        )
    return module


def _child(module: nn.Module, name: str) -> nn.Module:
    """What ``get_submodule`` gives, but diffusers' models answer ``hasattr`` slowly."""
    child = module._modules.get(name) or getattr(module, name)
    if not isinstance(child, nn.Module):
        raise AttributeError
    return child


def find_parameter(model: EditableModel, parameter: str) -> nn.Parameter:
    return getattr(find_module(model, parameter), parameter.rpartition(".")[2])


def comparable(tensor: Tensor) -> Tensor:
    """``tensor``, or itself in float32 if torch compares none of its number type (float8)."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


@torch.no_grad()
def check_finite(model: EditableModel) -> None:
    """Raise `ModelError` if a parameter holds NaN or infinity."""
    for part, module in model.components.items():
        for name, parameter in module.named_parameters():
            if parameter.is_meta or not parameter.numel():
                continue
            if not all(end.isfinite() for end in parameter.aminmax()):
                large = ", or numbers too large for float16" if parameter.dtype == torch.float16 else ""
                raise ModelError(
                    f"{titled(model.name)} is not finite in {part}.{name}: the file holds NaN or infinity{large}; use "
                    "another copy or an earlier save of it"
                )


@torch.no_grad()
def fingerprint(
    model: EditableModel,
    parameters: Iterable[str],
    values: int | None = None,
    *,
    precision: torch.dtype = torch.float16,
    before_edits: bool = False,
) -> str:
    """Hash the named tensors in half ``precision``, so that a model loaded in float32 and in it have one hash.

    With ``before_edits``, hash the weights without the active edits (`mu.edits.edit.shifted` keeps those weights).
    ``values`` limits the hash to about that many evenly spaced numbers of each tensor: milliseconds instead of seconds.
    It then misses a change between those numbers or one that half precision rounds away, but not a training of all.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(parameters):
        parameter = find_parameter(model, name)
        value: Tensor = getattr(parameter, BEFORE_EDITS, parameter) if before_edits else parameter
        value = value.detach()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        step = max(1, value.numel() // values) if values else 1
        value = value.flatten()[::step].to("cpu", precision).contiguous()
        digest.update(value.view(torch.int16).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
