"""The forget gradient, turned away from what the layers see of everything else.

A linear layer W with inputs x of the retain set has the second moment C = mean(x x^T). Of all shifts D with the same first-order
effect <g_f, D> on the forget loss, the one with the least tr(D C' D^T), C' = C + eps c I, c = tr(C) / d, is along

    g_f C'^-1

and tr(D C D^T) is the mean square of what changes in the layer's retained outputs; eps keeps directions that C hardly
holds from taking all of the step.

A departure from the paper, which moves along g_f: off unless ``gradients.precondition`` is set. It is the step of closed-form
editing (UCE, ROME) with SLUG's gradient in place of a target. To check: ``benchmarks/canvas_clip_methods.py`` tunes
SLUG with and without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mu.core.errors import ConfigError
from mu.data.pairs import Captioned
from mu.models.clip import ClipModel
from mu.models.contrastive import encode_pairs
from mu.models.parameters import find_module


@torch.no_grad()
def second_moments(clip: ClipModel, pairs: Sequence[Captioned], names: Sequence[str], chunk: int = 128) -> dict[str, Tensor]:
    """C (d, d) in float64, on the CPU, of each of the parameters ``names`` that is a linear layer's weight. `ConfigError` for none.

    Over all tokens, those behind a caption's end too: a diffusion model reads them. A caption that occurs twice in a chunk counts once.
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
        raise ConfigError("gradients.precondition acts on linear layers, and none of the tensors is one: leave it out")
    return {name: each / counts[name] for name, each in sums.items()}


def preconditioned(g_f: Mapping[str, Tensor], moments: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    """g_f (C + eps c I)^-1 where there is a C, of the norm of g_f, so that steps are told as before; others as they are."""
    turned = dict(g_f)
    for name, C in moments.items():
        g = g_f[name].detach().cpu().double()
        damped = C + eps * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
        direction = torch.linalg.solve(damped, g.T).T
        turned[name] = (direction * (g.norm() / direction.norm())).to(g_f[name])
    return turned
