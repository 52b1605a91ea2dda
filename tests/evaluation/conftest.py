"""What several tests of judges and suites share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def timm_vit() -> Callable[..., dict[str, Tensor]]:
    """``timm_vit(51)``: the tensors of a small classifier in the published layout of UnlearnCanvas."""
    return tensors_of_vit


def tensors_of_vit(classes: int, width: int = 128, depth: int = 2, patch: int = 8, side: int = 32) -> dict[str, Tensor]:
    """The tensors of a small ViT under timm's names."""
    draw = torch.Generator().manual_seed(classes)
    r = lambda *shape: torch.randn(shape, generator=draw) * 0.2  # noqa: E731
    found = {
        "cls_token": r(1, 1, width), "pos_embed": r(1, (side // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": r(width, 3, patch, patch), "patch_embed.proj.bias": r(width),
        "norm.weight": 1 + r(width), "norm.bias": r(width), "head.weight": r(classes, width), "head.bias": r(classes),
    }  # fmt: skip
    for k in range(depth):
        parts = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (2 * width, width),
            "mlp.fc2": (width, 2 * width),
        }
        for name, shape in parts.items():
            found |= {f"blocks.{k}.{name}.weight": r(*shape), f"blocks.{k}.{name}.bias": r(shape[0])}
        for norm in ("norm1", "norm2"):
            found |= {f"blocks.{k}.{norm}.weight": 1 + r(width), f"blocks.{k}.{norm}.bias": r(width)}
    return found
