"""Say what a merge loses: a merged file has no gates, so a gated edit acts on every prompt in full."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from mu.core.errors import DataError, EditError
from mu.edits.bank import Bank
from mu.edits.edit import shifted
from mu.edits.gates import FacilitatedTransport, FixedStrength, Gate
from mu.models.diffusion import DiffusionModel

NEUTRAL = ("a portrait of a person", "a photo of a dog", "a bowl of fruit", "a city street")
"""Prompts that name no concept which one would erase."""
SIDE = 32
"""Largest height and width of the latents that are compared."""

log = logging.getLogger("mu")


def tell_lost_gates(bank: Bank, strengths: Sequence[float]) -> None:
    """Warn if an edit of ``bank`` has a gate, with how far merging moves neutral prompts, gated and ungated."""
    gated = [edit for edit in bank.on if _reads_more(edit.gate)]
    if not gated:
        return
    names = ", ".join(repr(edit.concept()) for edit in gated)
    plain, moved = "acts on every prompt in full, as in a file without gates", ""
    if isinstance(bank.model, DiffusionModel) and (found := _measured(bank, strengths)):
        gates, whole = found
        moved = (
            f"; on {len(NEUTRAL)} neutral prompts it moves the predicted noise by {whole:.1%} of its norm, and with "
            f"its gate by {gates:.1%} (at the middle of the noise levels, before guidance)"
        )
    log.warning("the gate of the edit of %s is lost: merged, it %s%s", names, plain, moved)


def _measured(bank: Bank, strengths: Sequence[float]) -> tuple[float, float] | None:
    """`neutral_shift`; None if an edit's gate cannot be computed, so that it runs with a fixed strength only."""
    try:
        return neutral_shift(bank, strengths)
    except (EditError, DataError):
        return None


def _reads_more(gate: Gate) -> bool:
    """Whether ``gate`` is more than one number, which a merge can multiply in."""
    if isinstance(gate, FixedStrength):
        return gate.arithmetic == "reference" and gate.strength != 1
    return isinstance(gate, FacilitatedTransport)


@torch.no_grad()
def neutral_shift(bank: Bank, strengths: Sequence[float]) -> tuple[float, float]:
    """How far the edits, at ``strengths``, move the noise predicted for `NEUTRAL` prompts: (with their gates, merged).

    Mean over the prompts of ||eps_edited - eps|| / ||eps||, on the same random latents.
    """
    model = bank.model
    assert isinstance(model, DiffusionModel)
    side = min(SIDE, int(model.backbone.config.sample_size))
    shape = (1, model.latent_channels, side, side)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device).expand(len(NEUTRAL), -1, -1, -1)
    pixels = side * model.pixels_per_latent

    def noise() -> Tensor:
        conditioning = model.encode(NEUTRAL).at(model.time_ids(pixels, pixels))
        return model.predict_noise(x, len(model.alphas_cumprod) // 2, conditioning).flatten(1)

    base = noise()
    with bank.applied(strengths):
        gated = noise()
    with shifted(model, bank.deltas(bank.merged_strengths(strengths))):
        merged = noise()
    gates, whole = (float(((each - base).norm(dim=1) / base.norm(dim=1)).mean()) for each in (gated, merged))
    return gates, whole
