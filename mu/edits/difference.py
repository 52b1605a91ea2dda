"""The difference between weights that others published and their base model, as an edit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mu.core.concept import distinct
from mu.core.errors import ConfigError, EditError, ModelError, titled
from mu.core.files import sha256
from mu.core.progress import progress_bar
from mu.edits.edit import Edit, EditInfo, described
from mu.edits.factoring import factored
from mu.edits.files import open_edit
from mu.edits.lora_files import IMPORTED, holds_lora
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.edits.places import edit_file
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.models.formats.checkpoint import open_weights, read_metadata
from mu.models.formats.other_weights import Weights, differing_settings, place_of, weights_of
from mu.models.mapped import Keeper
from mu.models.parameters import BEFORE_EDITS, comparable, find_module, find_parameter

ERROR = 1e-3
"""Largest error of a low-rank edit: of each matrix, as a share of the norm of its difference."""
_HALVES = (torch.float16, torch.bfloat16)
_ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""Largest rounding error of a number, as a share of it."""

LONG = 2**27
"""Bytes of weights from which on a progress bar is worth its lines."""

log = logging.getLogger("mu")


def difference(
    base: DiffusionModel,
    other: Path | str,
    *,
    concepts: Iterable[str] = (),
    method: str | None = None,
    components: Iterable[str] = (),
    error: float | None = None,
    rank: int | None = None,
    show: bool = False,
) -> Edit:
    """The edit that turns ``base`` into ``other``: weights that were published, of the whole model or of a part.

    ``other`` is a diffusers folder or a hub id, a single file in CompVis' layout, a state dict of the UNet or of a text
    encoder, whole or partial, or the ``delta.bin`` of Concept Ablation. What `open_edit` reads, such as a LoRA, is
    returned with the ``concepts`` and the base noted.

    Parameters that are equal are left out, also those that are equal up to the rounding of ``other``'s half precision
    (or of the base's, if it explains most differences). The edit is low-rank if each changed parameter is the matrix of
    a linear layer or 1x1 convolution, and its factors are smaller than itself at an ``error`` (`ERROR`; 0 for a dense
    edit) of its difference, or at the rounding of ``other``. ``rank`` sets the rank instead. Else it is dense.
    ``info.found`` holds the error that was measured and the SHA-256 of each file. ``components`` restricts the edit to
    some (``unet``, ``text_encoder``, ...), and says what keys without a component belong to. ``show`` a progress bar.

    Raises `EditError` if nothing differs, a number is not finite, or a given ``rank`` is not possible; `ModelError` as
    `mu.models.formats.other_weights.weights_of` does, and `ConfigError` for settings that do not fit.
    """
    if not isinstance(base, DiffusionModel):
        raise ModelError(f"{titled(base.name)} does not make images: give a diffusion model as the base")
    named, only = tuple(distinct(concepts)), list(components)
    _check(error, rank)
    place = place_of(other)
    if _is_edit(place):
        if only or error is not None or rank is not None:
            raise ConfigError(
                f"{other} is an edit already, so components, error and rank have no effect: leave them out"
            )
        return _passed(open_edit(place), base, named, method)
    if settings := differing_settings(place, base):
        log.warning("%s differs from %r also in its %s, which no edit holds", other, base.name, ", ".join(settings))
    with weights_of(place, base, only) as weights:
        if weights.tokens:
            log.warning("%s: embeddings of new tokens are left out: %s", other, ", ".join(weights.tokens))
        found = _Difference(base, weights, str(other), show)
        found.compare(only)
        edit = found.edit(ERROR if error is None else error, rank)
    edit.info = EditInfo(
        method or IMPORTED,
        named,
        config={"file": place.resolve().stem if place.is_file() else place.resolve().name},
        found={**found.facts, "files": {_named(path, place): sha256(path) for path in weights.paths}},
        **described(base, edit.parameters),
    )
    return edit


def _named(file: Path, place: Path) -> str:
    """The path of ``file`` in the folder ``place``; of a file elsewhere, its name."""
    return file.relative_to(place).as_posix() if file.is_relative_to(place) and file != place else file.name


def _check(error: float | None, rank: int | None) -> None:
    if error is not None and not 0 <= error <= 1:
        raise ConfigError(f"error is a share of the difference, from 0 to 1, not {error}")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is at least 1, not {rank}")
    if rank is not None and error is not None:
        raise ConfigError("rank and error exclude each other: give one of them")


def _is_edit(place: Path) -> bool:
    """Whether ``place`` is an edit of mu, a LoRA or an adapter, and no whole weights."""
    if place.is_dir():
        with suppress(EditError):
            return bool(edit_file(place))
        return False
    with open_weights(place) as file:
        return holds_lora(file.shapes) or any(key.startswith("mu.") for key in read_metadata(place))


def _passed(edit: Edit, base: DiffusionModel, concepts: tuple[str, ...], method: str | None) -> Edit:
    edit.check(base)
    known: dict[str, Any] = {} if edit.info.base else described(base, edit.parameters)
    edit.info = replace(edit.info, concepts=concepts or edit.info.concepts, method=method or edit.info.method, **known)
    return edit


@dataclass
class _Difference:
    """What differs between ``base`` and the weights of ``other``. Each tensor is read when it is needed."""

    base: DiffusionModel
    weights: Weights
    other: str
    show: bool
    changed: list[str] = field(default_factory=list)
    rounding: dict[str, torch.dtype] = field(default_factory=dict)
    """Component -> half precision of the base, if it explains most differences of the component."""
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = {name: find_parameter(self.base, name) for name in self.weights.names}

    def compare(self, only: Iterable[str]) -> None:
        """Find the changed parameters, of the components ``only`` if there are any. Raises `EditError` for none."""
        near: dict[str, dict[str, torch.dtype]] = {}
        rounded: Counter[str] = Counter()
        with self._bar("compared", len(self.weights.names)) as advance:
            for k, name in enumerate(self.weights.names, 1):
                there = self._read(name)
                if not all(end.isfinite() for end in comparable(there).aminmax()):
                    raise EditError(f"{self.other} is not finite in {name}: use an earlier save of it")
                if not torch.equal(comparable(self._own(name).to(there.dtype)), comparable(there)):
                    self.changed.append(name)
                    if half := self._half_of_base(name, there):
                        near.setdefault(_component(name), {})[name] = half
                elif there.dtype in _HALVES and not torch.equal(self._own(name), there.float()):
                    rounded[str(there.dtype).removeprefix("torch.")] += 1
                advance(k, "")
        counts = Counter(map(_component, self.weights.names))
        for component, names in near.items():
            if 2 * len(names) > counts[component]:
                self.rounding[component] = half = Counter(names.values()).most_common(1)[0][0]
                left_out = {name for name, each in names.items() if each == half}
                self.changed = [name for name in self.changed if name not in left_out]
                rounded[str(half).removeprefix("torch.")] += len(left_out)
        for half_name, count in rounded.items():
            log.info("%d tensors are equal up to the rounding to %s and left out", count, half_name)
        self._restrict(list(only), bool(rounded))
        changed = Counter(map(_component, self.changed))
        self.facts["changed"] = {part: f"{count} of {counts[part]} tensors" for part, count in changed.items()}
        log.info("changed: %s", ", ".join(f"{part} {told}" for part, told in self.facts["changed"].items()))

    def _restrict(self, only: list[str], rounded: bool) -> None:
        if not self.changed:
            how = " up to the rounding of its precision" if rounded else ""
            raise EditError(f"{self.other} equals {titled(self.base.name)}{how}: nothing to import")
        others = Counter(part for part in map(_component, self.changed) if only and part not in only)
        if others:
            log.warning("left out, since other components were named: the changes of %s", ", ".join(others))
            self.changed = [name for name in self.changed if _component(name) in only]
        if not self.changed:
            raise EditError(
                f"{self.other} differs from {titled(self.base.name)} in {', '.join(others)} alone: name that"
            )

    def edit(self, error: float, rank: int | None) -> Edit:
        """The changed parameters as an edit, low-rank where possible. Its info is still empty."""
        nothing = EditInfo(IMPORTED, ())
        odd = next((name for name in self.changed if not _is_matrix(self.base, name)), None)
        if rank is not None and odd:
            raise EditError(f"{odd} is changed and is no matrix of a layer, so no rank is possible: leave rank out")
        factors = self._factors(error, rank) if odd is None and (error or rank) else None
        if factors is not None:
            return LowRankEdit(factors, nothing)
        shifts, lost, whole, keeper = {}, 0.0, 0.0, Keeper()
        for name in self.changed:
            there = self._read(name)
            shift = self._delta(name, there)
            gone = torch.where(shift == 0, 0, there.float() - (self._own(name) + shift))
            lost, whole = lost + _square(gone), whole + _square(shift)
            shifts[name] = keeper.copy(shift)
        self.facts["error"] = (lost / whole) ** 0.5
        log.info("a dense edit%s", f": {odd} is no matrix of a layer" if odd else "")
        return WeightEdit(shifts, nothing)

    def _factors(self, error: float, rank: int | None) -> dict[str, Factors] | None:
        """The factors of each changed parameter; None if those of one are no smaller than itself."""
        factors, lost, whole = {}, 0.0, 0.0
        with self._bar("factors", len(self.changed)) as advance:
            for k, name in enumerate(self.changed, 1):
                there = self._read(name)
                delta = self._delta(name, there)
                size = _square(delta)
                noise = _ROUNDING.get(there.dtype, 0.0) ** 2 * _square(there.float()) / 3
                thin = factored(delta, max(error**2 * size, noise) ** 0.5, rank)
                if thin is None:
                    return None
                factors[name] = thin
                lost, whole = lost + _square(delta - thin.dense(delta.shape)), whole + size
                advance(k, "")
        self.facts["error"] = (lost / whole) ** 0.5
        self.facts["rank"] = max(thin.rank for thin in factors.values())
        log.info(
            "a low-rank edit: rank %d at most, error %.1e of the difference",
            *(self.facts[k] for k in ("rank", "error")),
        )
        return factors

    def _read(self, name: str) -> Tensor:
        """The parameter in OTHER: in its number type, but no wider than float32."""
        there = self.weights.read(name)
        return there.float() if there.dtype == torch.float64 else there

    def _own(self, name: str) -> Tensor:
        """The base's parameter in float32, without edits that are on."""
        parameter = self.parameters[name]
        return getattr(parameter, BEFORE_EDITS, parameter).detach().cpu().float()

    def _same(self, name: str, there: Tensor) -> Tensor:
        """Where ``there`` equals the base's parameter, rounded to its number type."""
        own = self._own(name)
        same = comparable(own.to(there.dtype)) == comparable(there)
        if half := self.rounding.get(_component(name)):
            same |= own.to(half) == there.to(half)
        return same

    def _delta(self, name: str, there: Tensor) -> Tensor:
        """What is to be added in float32; 0 where only rounding differs."""
        return torch.where(self._same(name, there), 0, there.float() - self._own(name))

    def _half_of_base(self, name: str, there: Tensor) -> torch.dtype | None:
        """The half precision that the base was stored in, if rounding ``there`` to it gives the base's parameter."""
        own = self._own(name)
        return next((half for half in _HALVES if torch.equal(there.to(half).float(), own)), None)

    def _bar(self, title: str, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        long = sum(path.stat().st_size for path in self.weights.paths) > LONG
        return progress_bar(title, total) if self.show and long else nullcontext(lambda done, note: None)


def _component(name: str) -> str:
    return name.partition(".")[0]


def _is_matrix(model: DiffusionModel, name: str) -> bool:
    """Whether ``name`` is the weight of a linear layer or 1x1 convolution, outside the autoencoder."""
    layer = find_module(model, name)
    linear = isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1} and layer.groups == 1
    )
    return linear and name.endswith(".weight") and _component(name) != "vae"


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
