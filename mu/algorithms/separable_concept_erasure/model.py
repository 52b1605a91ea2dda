"""The deltas that CiE and SepCE train: one on every cross-attention weight, one inside a null space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.algorithms.separable_concept_erasure.null_space import Room, token_rows
from mu.core.errors import ModelError, titled
from mu.edits.edit import EditInfo, described
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors, Membrane
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter
from mu.training.tuning import Tuning, tuned


class Shift(Protocol):
    """A delta in training. It is on inside ``installed()``, and off again inside ``frozen()``."""

    weights: list[nn.Parameter]

    def installed(self) -> AbstractContextManager[None]: ...

    def frozen(self) -> AbstractContextManager[None]: ...

    def as_used(self) -> AbstractContextManager[None]:
        """Inside the block, and inside ``installed()``, the delta acts as the finished edit will: with its gate."""
        ...

    def scale(self) -> Sequence[Tensor]:
        """The tensors that are changed, whose size is the unit of a relative learning rate."""
        ...

    def norm(self) -> Tensor:
        """R = 1/M sum_l ||D_l||_1: sum over the elements, mean over the M tensors; with gradient."""
        ...

    def moved(self) -> Tensor | None:
        """How far spared sentences are moved; None if the delta spares none."""
        ...


def text_layers(model: DiffusionModel) -> dict[str, nn.Linear | nn.Conv2d]:
    """``to_k`` and ``to_v`` of every cross-attention by weight name: 32 layers and 19,169,280 parameters on SD 1.x."""
    text = model.layers("text-keys") | model.layers("text-values")
    layers = {name: layer for name, layer in model.layers("transformer").items() if name in text}
    if not layers:
        raise ModelError(
            f"{titled(model.name)} has no cross-attention for separable erasure to change: name another model"
        )
    return layers


def _root(rows: Tensor) -> Tensor:
    """R (k, k) with R^T R the second moment E[e e^T] of ``rows`` (m, k): as many rows as columns in place of m."""
    return torch.linalg.qr(rows / len(rows) ** 0.5, mode="r").R


def _described(model: DiffusionModel, parameters: list[str], info: EditInfo) -> EditInfo:
    return EditInfo(**{**vars(info), **described(model, parameters)})


class SeparableShift:
    """One concept's delta D_l = w_l (beta S) on every text layer; w_l (d_out, k) is trained from zero (section 2.4)."""

    def __init__(self, model: DiffusionModel, room: Room, info: EditInfo, sentences: Sequence[str] = ()):
        layers = text_layers(model)
        dtype = torch.promote_types(next(iter(layers.values())).weight.dtype, torch.float32)
        down = room.basis.to(model.device, dtype)
        if wrong := [name for name, layer in layers.items() if layer.weight.shape[1] != down.shape[1]]:
            raise ModelError(
                f"{wrong[0]} of {titled(model.name)} does not read prompt embeddings of width {down.shape[1]}: "
                "name another"
            )
        factors: dict[str, Factors] = {}
        self.weights: list[nn.Parameter] = []
        for name, layer in layers.items():
            self.weights.append(
                nn.Parameter(torch.zeros(layer.weight.shape[0], len(down), device=model.device, dtype=dtype))
            )
            factors[name] = Factors(down, self.weights[-1], float(len(down)))
        self.model, self.room = model, room
        self.edit = LowRankEdit(
            factors,
            replace(
                _described(model, list(factors), info), protects=room.capacity.protected, spares=room.capacity.spared
            ),
        )
        self.membrane = Membrane([self.edit])
        self._sentences: Tensor | None = None
        if sentences:
            rows = token_rows(model, sentences)
            self._sentences, root = _root(rows @ room.basis.T).float().to(model.device), _root(rows)
            originals = [layer.weight.detach().cpu().double() for layer in layers.values()]
            sizes = [float(F.linear(root, weight).square().sum()) for weight in originals]
            self._sizes = torch.tensor(sizes, device=model.device)

    @contextmanager
    def installed(self) -> Iterator[None]:
        with self.membrane.installed(self.model):
            yield

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with torch.no_grad(), self.membrane.off():
            yield

    @contextmanager
    def as_used(self) -> Iterator[None]:
        with self.membrane.off(), self.edit.applied(self.model):
            yield

    @torch.no_grad()
    def start_from(self, edit: LowRankEdit) -> None:
        """Start from the delta of ``edit``, projected onto the span of the basis."""
        inverse = torch.linalg.pinv(self.room.basis)
        for weight, name in zip(self.weights, self.edit.factors, strict=True):
            weight.copy_((edit.factors[name].dense().cpu().double() @ inverse).to(weight))

    def scale(self) -> Sequence[Tensor]:
        return [layer.weight for layer in text_layers(self.model).values()]

    def norm(self) -> Tensor:
        return torch.stack([(f.up @ f.down).abs().sum() for f in self.edit.factors.values()]).mean()

    def moved(self) -> Tensor | None:
        """Mean over tensors of E||D e||^2 / E||W e||^2, e the token rows of the sentences; with gradient.

        0.01 means that their keys and values move by a tenth of their length. Not in the paper.
        """
        if self._sentences is None:
            return None
        moved = torch.stack([F.linear(self._sentences, weight).square().sum() for weight in self.weights])
        return (moved / self._sizes).mean()

    def finished(self) -> LowRankEdit:
        """The trained edit, on the CPU as one that is opened."""
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.edit.tensors().items()}
        return LowRankEdit.from_tensors(tensors, self.edit.info)

    @torch.no_grad()
    def leak(self) -> tuple[float, float]:
        """The bound on the change of protected keys and values, and the change itself as a share of the largest of
        them."""
        # Every row of the model's embeddings, also those that `token_rows` treats as equal.
        E = (
            self.model.encode([*self.room.capacity.protected, *self.room.capacity.spared])
            .sequence.flatten(0, 1)
            .cpu()
            .double()
        )
        bound, moved = 0.0, 0.0
        for name, shift in self.edit.deltas():
            D, W = (t.detach().cpu().double() for t in (shift, find_parameter(self.model, name)))
            bound = max(bound, self.room.space.leak * float(torch.linalg.matrix_norm(D, 2)))
            moved = max(moved, float((E @ D.T).abs().max() / (E @ W.T).abs().max()))
        return bound, moved


class DenseShift:
    """CiE's delta: every cross-attention parameter, 80 tensors and 43,962,560 numbers on SD 1.x (section 1.2)."""

    def __init__(self, model: DiffusionModel, info: EditInfo):
        self.parameters = model.parameters("cross-attention")
        self.weights = list(self.parameters.values())
        self.originals = [parameter.data for parameter in self.weights]
        self.info = _described(model, list(self.parameters), info)
        self.tuning: Tuning | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        with tuned(self.parameters) as self.tuning:
            yield

    def frozen(self) -> AbstractContextManager[None]:
        assert self.tuning is not None, "installed() comes first"
        return self.tuning.frozen()

    def as_used(self) -> AbstractContextManager[None]:
        return nullcontext()

    def scale(self) -> Sequence[Tensor]:
        return self.originals

    def norm(self) -> Tensor:
        pairs = zip(self.weights, self.originals, strict=True)
        return torch.stack([(weight - original).abs().sum() for weight, original in pairs]).mean()

    def moved(self) -> None:
        return None

    def finished(self) -> WeightEdit:
        """The trained edit. Call it inside ``installed()``."""
        assert self.tuning is not None, "installed() comes first"
        return WeightEdit(self.tuning.shifts(), self.info)
