"""The forget gradient, rotated away from the layers' inputs for the retain pairs.

Let C = mean(x x^T) be the second moment of the inputs x of a linear layer W on the retain set. Many deltas D have the
same first-order effect <g_f, D> on the forget loss. The one with the least tr(D C' D^T), C' = C + eps c I, c = tr(C) /
d, is along

    g_f C'^-1

Here tr(D C D^T) is the mean square change of the layer's retained outputs. eps keeps directions that are almost absent
from C from taking the whole step.

This departs from the paper, which moves along g_f. It is off unless ``gradients.precondition`` is set. It is the step
of closed-form editing (UCE, ROME) with SLUG's gradient in place of a target. To check:
``benchmarks/canvas_slug_options.py`` measures SLUG with and without it, on CLIPs of two worlds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mu.core.errors import ConfigError
from mu.data.pairs import Captioned
from mu.models.clip import ClipModel
from mu.models.contrastive import encode_pairs
from mu.models.parameters import find_module


@torch.no_grad()
def second_moments(
    clip: ClipModel, pairs: Sequence[Captioned], names: Sequence[str], chunk: int = 128
) -> dict[str, Tensor]:
    """C (d, d), float64 on the CPU, for each parameter in ``names`` that is the weight of a linear layer.

    The mean is over all tokens, also those after a caption's end, because a diffusion model reads them. A caption that
    occurs twice in a chunk counts once. Raises `ConfigError` if no parameter is the weight of a linear layer.
    """
    layers = {name: find_module(clip, name) for name in names if name.endswith(".weight")}
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def noted(name: str):
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            part = (x.T @ x).cpu().double()
            sums[name] = sums[name] + part if name in sums else part
            counts[name] += len(x)

        return hook

    hooks = [layer.register_forward_hook(noted(name)) for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    try:
        for start in range(0, len(pairs), chunk):
            encode_pairs(clip, pairs[start : start + chunk])
    finally:
        for hook in hooks:
            hook.remove()
    if not sums:
        raise ConfigError("gradients.precondition needs a linear layer, but none of the tensors is one: unset it")
    return {name: each / counts[name] for name, each in sums.items()}


def preconditioned(g_f: Mapping[str, Tensor], moments: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    """g_f (C + eps c I)^-1 for the tensors of one direction that have a C; the others keep their g_f.

    What was turned is scaled, by one factor, to the norm of its g_f, so that rho keeps its meaning.
    """
    found = {name: C for name, C in moments.items() if name in g_f}
    before = {name: g_f[name].detach().cpu().double() for name in found}
    turned = {}
    for name, C in found.items():
        damped = C + eps * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
        turned[name] = torch.linalg.solve(damped, before[name].T).T
    scale = _norm(before) / _norm(turned) if turned else 1.0
    return {**g_f, **{name: (scale * direction).to(g_f[name]) for name, direction in turned.items()}}


def _norm(parts: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(part.square().sum()) for part in parts.values()))
