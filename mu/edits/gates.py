"""How much of an edit passes for a prompt: one strength for all prompts, or facilitated transport.

An edit's file states its gate. `mu.edits.gatekeeper` computes the gate on a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from mu.core.errors import ConfigError, quoted
from mu.core.records import Finite, wrong

Metric = Literal["clipcos", "tokenuni", "clipcos_tokenuni", "allone"]
Arithmetic = Literal["paper", "reference"]


@dataclass(frozen=True)
class FixedStrength:
    """The same strength for every prompt."""

    strength: Finite = 1.0
    arithmetic: Arithmetic = "paper"


@dataclass(frozen=True)
class FacilitatedTransport:
    """gamma(p) = factor * the largest similarity of the prompt p to any of the edit's concepts.

    With two similarities the larger one counts (Lyu et al., CVPR 2024, section 3.3). ``clipcos``: cosine of the
    flattened prompt embeddings, padding included. ``tokenuni``: the share of the concept's tokens in the prompt, as
    sets; 0 for embeddings that come from no prompt. ``allone``: always 1. The published gate has no threshold, so
    unrelated prompts also get a part of the edit.

    ``floor`` in [0, 1), not in the paper: a similarity s counts as max(0, s - floor) / (1 - floor), so prompts up to
    it get nothing and the concept itself as much as before. With a floor, a concept's plural counts as the concept.
    Embeddings that come from no known prompt have no floor. `mu.edits.gatekeeper.closed_to` finds it.

    Each row of a batch has the gate of its own prompt; the unconditional half of classifier-free guidance has that of
    the prompt it is guided to, as published. A loop of your own that evaluates the halves one by one pairs them by
    ``uncond.guiding(cond)``; unpaired, an empty prompt is a prompt like any other (its gate for "neon" on canvas is
    0.49).

    ``arithmetic="paper"`` is linear in gamma (Eq. 9). ``"reference"`` follows the released code, which multiplies gamma
    into both factors and sums the factors of all files. One edit then acts with gamma squared, several add cross terms.
    check: run ``edit.applied`` with both at a prompt whose gamma is 0.5; the delta differs by a factor of 2.
    """

    factor: Finite = 1.0
    metric: Metric = "clipcos_tokenuni"
    arithmetic: Arithmetic = "paper"
    floor: Annotated[Finite, Field(ge=0, lt=1)] = 0.0


Gate = FixedStrength | FacilitatedTransport
OPEN = FixedStrength()
"""The gate that passes the whole edit, used if the edit's file states none."""

_KINDS: dict[str, type[Gate]] = {"facilitated_transport": FacilitatedTransport, "fixed": FixedStrength}


def gate_to_json(gate: Gate) -> dict[str, Any]:
    """``gate`` as an edit's file holds it; empty for `OPEN`."""
    if gate == OPEN:
        return {}
    kind = next(name for name, cls in _KINDS.items() if isinstance(gate, cls))
    content = asdict(gate)
    if not content.get("floor", True):  # earlier versions know the published gate, which has none
        del content["floor"]
    return {"kind": kind, **content}


def gate_from_json(content: Mapping[str, Any]) -> Gate:
    """The inverse of `gate_to_json`.

    Raises `ConfigError` for an unknown kind of gate, an unknown option, or an option's value of another type.
    """
    options = dict(content)
    kind = options.pop("kind", "fixed")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"unknown gate {quoted(kind)}; choose {' or '.join(_KINDS)}")
    try:
        gate = _KINDS[kind](**options)
    except TypeError as error:
        raise ConfigError(f"gate {quoted(kind)} does not fit this version of mu ({error}): upgrade mu") from None
    try:
        return TypeAdapter(_KINDS[kind]).validate_python(asdict(gate))
    except ValidationError as error:
        raise ConfigError(f"gate {quoted(kind)}: {': '.join(wrong(error))}") from None
