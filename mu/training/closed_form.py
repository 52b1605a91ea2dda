"""What the closed forms share in a calibrated search: rows of prompt embeddings, and the choice of anchor and pressure.

A closed form replaces rows c of the concepts by rows a of their anchors and keeps rows k. The rows of all positions of
all phrasings are taken, and scaled so that their sums are means: no weight then depends on the number of prompts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mu.core.concept import says
from mu.core.errors import ConfigError, quoted
from mu.edits.edit import shifted
from mu.models.diffusion import DiffusionModel
from mu.training.calibration import Calibration, check_finite
from mu.training.diffusion_config import by_hand
from mu.training.probe import Reading

log = logging.getLogger("mu")

ANCHORS = ("", "art", "person")
"""Anchors that are tried beside a concept's peers."""
TRIED = 6
"""Peers that are tried as anchors."""

Solved = Callable[[Tensor, Tensor, float], Mapping[str, Tensor]]
"""``solved(C, A, pressure)``: the delta of every edited parameter."""


def rows(model: DiffusionModel, texts: Sequence[str]) -> Tensor:
    """The rows of all positions of the prompt embeddings of ``texts``, (n, width), in float64; their sums are means."""
    found = model.encode(texts).sequence.flatten(0, 1).cpu().double()
    return found / max(len(found), 1) ** 0.5


def pair_rows(model: DiffusionModel, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Rows c and a (n, width) of every phrasing with the concept and with its anchor, where the two differ."""
    c, a = (rows(model, side) for side in zip(*pairs, strict=True))
    differ = (c - a).abs().amax(1) > 1e-6 * c.abs().max()
    share = (len(c) / max(int(differ.sum()), 1)) ** 0.5
    return c[differ] * share, a[differ] * share


def kept_texts(calibrations: Sequence[Calibration]) -> list[str]:
    """What any of ``calibrations`` keeps, once each; none says a concept, as each knows the others."""
    return list(dict.fromkeys(text for each in calibrations for text in each.around.kept))


class Choice(NamedTuple):
    """What the probe of one concept found best."""

    anchor: str
    pressure: float
    tried: list[dict[str, Any]]
    """Every anchor and pressure that was tried, with its reading."""


def chosen(
    model: DiffusionModel,
    config: Any,
    calibrations: Sequence[Calibration],
    pressures: Sequence[float],
    solved: Solved,
) -> list[Choice]:
    """For each concept alone, the anchor and the pressure at which its probe reads the lowest cost.

    All anchors are tried at the mildest of ``pressures`` at which one erases with little harm (a cost below 1), and
    that one at the higher ones too. Anchors that the user gave are taken. Raises `ConfigError` if no anchor differs
    from its concept.
    """
    found = []
    for k, each in enumerate(calibrations):
        names = [*each.around.peers[:TRIED], *ANCHORS]
        anchors = [a for a in names if not any(says(a, other.concept) for other in calibrations)]
        if by_hand(config, "anchors"):
            anchors = [config.anchors[k % len(config.anchors)]]
        pairs = {anchor: pair_rows(model, each.pairs(anchor)) for anchor in anchors}
        anchors = [anchor for anchor in anchors if len(pairs[anchor][0])]
        if not anchors:
            raise ConfigError(
                f"the text encoder gives {quoted(each.concept)} and its anchor the same embedding, which erases "
                "nothing: name another anchor"
            )
        best: list[tuple[float, str, float, Reading]] = []
        for pressure in pressures:
            for anchor in anchors:
                with shifted(model, solved(*pairs[anchor], pressure)):
                    reading = each.probe.read()
                best.append((each.cost(reading), anchor, pressure, reading))
            if min(best)[0] < 1:
                anchors = [min(best)[1]]
        _, anchor, pressure, reading = min(best)
        check_finite(reading)
        log.info("%r becomes %r", each.concept, anchor)
        tried = [{"anchor": a, "pressure": p, **r._asdict()} for _, a, p, r in best if all(map(math.isfinite, r))]
        found.append(Choice(anchor, pressure, tried))
    return found


def facts(calibrations: Sequence[Calibration], choices: Sequence[Choice], name: str) -> dict[str, Any]:
    """What `EditInfo.found` says of each concept, with the edit on; ``name`` is that of the pressure's setting."""
    return {
        each.concept: each.found(each.probe.read(), anchor=choice.anchor, tried=choice.tried, **{name: choice.pressure})
        for each, choice in zip(calibrations, choices, strict=True)
    }
