"""Weights & Biases and TensorBoard for the rows of a run's log, where they are asked for; never required."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

Row = Mapping[str, float]
Kind = Literal["wandb", "tensorboard"]
KINDS: tuple[Kind, ...] = ("wandb", "tensorboard")

log = logging.getLogger("mu")


class Tracking(NamedTuple):
    """Which tracker is asked for, if any, and the names that a run has there. TensorBoard has folders instead of names."""

    kind: Kind | None = None
    project: str = ""
    run: str = ""


class _WandB:
    def __init__(self, tracking: Tracking, folder: Path, config: Mapping[str, Any]):
        import wandb

        project = tracking.project or os.environ.get("WANDB_PROJECT") or "mu"
        self.run = wandb.init(project=project, name=tracking.run or folder.name, config=dict(config))

    def log(self, row: Row) -> None:
        self.run.log(dict(row))

    def finish(self) -> None:
        self.run.finish()


class _TensorBoard:
    """Event files in the run's own folder: ``tensorboard --logdir RUN/tensorboard``."""

    def __init__(self, tracking: Tracking, folder: Path, config: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(folder / "tensorboard"))

    def log(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))

    def finish(self) -> None:
        self.writer.close()


_TRACKERS = {"wandb": ("W&B", _WandB), "tensorboard": ("TensorBoard", _TensorBoard)}


@contextmanager
def tracked(tracking: Tracking, folder: Path, config: Mapping[str, Any]) -> Iterator[Callable[[Row], None]]:
    """``track(row)`` sends a row to what ``tracking`` asks for, which starts with the first one, and does nothing where it asks
    for nothing.

    A tracker that is missing or fails is told once, as a warning, and does not stop the run.
    """
    tracker: Any = None
    left = tracking.kind is None
    name, start = _TRACKERS[tracking.kind or "wandb"]

    def tell(call: Callable[[Any], Any]) -> None:
        """``call(tracker)`` while it works; the first that fails is the last."""
        nonlocal tracker, left
        if left:
            return
        try:
            tracker = tracker or start(tracking, folder, config)
            call(tracker)
        except ImportError:
            left = True
            log.warning("%s is not installed: losses go to metrics.jsonl alone (pip install 'mu-unlearning[track]')", name)
        except Exception as error:
            left = True
            log.warning("%s failed (%s): from here on losses go to metrics.jsonl alone", name, error)

    try:
        yield lambda row: tell(lambda live: live.log(row))
    finally:
        if tracker is not None:
            tell(lambda live: live.finish())
