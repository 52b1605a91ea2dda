"""How much of an edit passes for a prompt, as an edit's file states it: one strength for all prompts, or facilitated transport.

What a gate comes to on a model is `mu.edits.gatekeeper`'s work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mu.core.errors import ConfigError

Metric = Literal["clipcos", "tokenuni", "clipcos_tokenuni", "allone"]
Arithmetic = Literal["paper", "reference"]


@dataclass(frozen=True)
class FixedStrength:
    """The same strength for every prompt."""

    strength: float = 1.0
    arithmetic: Arithmetic = "paper"


@dataclass(frozen=True)
class FacilitatedTransport:
    """gamma(p) = factor * max over the edit's concepts c of the larger of two similarities of p and c (Lyu et al., CVPR 2024,
    section 3.3).

    ``clipcos``: cosine of the flattened prompt embeddings, padding included. ``tokenuni``: the share of the concept's tokens
    that the prompt holds, as sets; 0 for embeddings that no prompt explains. ``allone``: always 1. There is no threshold:
    unrelated prompts keep a part.

    Each row of a batch has the gate of its own prompt; the unconditional half of classifier-free guidance has that of the
    prompt it is guided to, as published. A loop of your own that evaluates the halves one by one pairs them by
    ``uncond.guiding(cond)``; unpaired, an empty prompt is a prompt like any other (its gate for "neon" on canvas is 0.49).

    ``arithmetic="paper"`` is linear in gamma (Eq. 9). ``"reference"`` does as the released code, which multiplies gamma into both
    factors and sums the factors of all files: one edit then acts with gamma squared, several with cross terms. Compare the
    two by ``edit.applied`` at a prompt whose gamma is 0.5: the delta differs by a factor of 2.
    """

    factor: float = 1.0
    metric: Metric = "clipcos_tokenuni"
    arithmetic: Arithmetic = "paper"


Gate = FixedStrength | FacilitatedTransport
OPEN = FixedStrength()
"""Passes in full: the gate of an edit whose file states none."""

_KINDS: dict[str, type[Gate]] = {"facilitated_transport": FacilitatedTransport, "fixed": FixedStrength}


def gate_to_json(gate: Gate) -> dict[str, Any]:
    """What an edit's file holds of ``gate``; empty for `OPEN`."""
    if gate == OPEN:
        return {}
    kind = next(name for name, cls in _KINDS.items() if isinstance(gate, cls))
    return {"kind": kind, **asdict(gate)}


def gate_from_json(content: Mapping[str, Any]) -> Gate:
    """The inverse of `gate_to_json`. Raises `ConfigError` for an unknown kind of gate or option of one."""
    options = dict(content)
    kind = options.pop("kind", "fixed")
    if kind not in _KINDS:
        raise ConfigError(f"unknown gate {kind!r}; choose {' or '.join(_KINDS)}")
    try:
        return _KINDS[kind](**options)
    except TypeError as error:
        raise ConfigError(f"gate {kind!r} does not fit this version of mu ({error}): upgrade mu") from None
