"""The images of one suite, made by several devices: each makes a shard, and who asked for all of them scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mu.core.workers import beside

if TYPE_CHECKING:
    from mu.models.parameters import EditableModel


@dataclass(frozen=True)
class Loading:
    """How a process loads the base model: by ``name``, with the options of `mu.models.load`, and compiled or not."""

    name: str
    options: Mapping[str, Any]
    compiled: bool = False

    def load(self, device: str | None) -> EditableModel:
        from mu.models import load
        from mu.models.diffusion import DiffusionModel

        model = load(self.name, device=device, **self.options)
        if isinstance(model, DiffusionModel):
            model.compiles = self.compiled
        return model


@contextmanager
def other_parts(
    run: Path, suite: str, loading: Loading, devices: Sequence[str], seeds: Sequence[int] | None,
    options: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Make the shards of all ``devices`` but the first, each in a process of its own; yields the option of the first's.

    Raises `ConfigError`, before a process begins, if the suite takes no shards or other options than these, and
    `mu.core.workers.LostPartError` after the block if a shard was not made.
    """
    from mu.core.workers import Shard
    from mu.evaluation.suites import check_options

    shards = [Shard(k, len(devices)) for k in range(1, len(devices) + 1)]
    check_options(suite, seeds, {**options, "shard": shards[0]})
    parts = {
        f"shard {shard.k} of {shard.n}, on {device}": (run, suite, loading, device, seeds, {**options, "shard": shard})
        for device, shard in zip(devices[1:], shards[1:], strict=True)
    }
    with beside(make_part, parts):
        yield {"shard": shards[0]}


def make_part(
    folder: Path, suite: str, loading: Loading, device: str, seeds: Sequence[int] | None, options: Mapping[str, Any]
) -> None:
    """Make the images of the shard in ``options`` of what the run ``folder`` measures."""
    from mu.core.run import RunDirectory
    from mu.evaluation.audit import subject
    from mu.evaluation.suites import evaluate

    run, base = RunDirectory(folder), loading.load(device)
    evaluate(run, suite, base, subject(run, base), seeds=seeds, **options)
