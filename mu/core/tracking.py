"""Optional Weights & Biases or TensorBoard tracking of a run's log."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mu.core.errors import ConfigError, nearest, titled

Row = Mapping[str, float]
Kind = Literal["wandb", "tensorboard"]
KINDS: tuple[Kind, ...] = ("wandb", "tensorboard")

log = logging.getLogger("mu")


def tracker(name: str) -> Kind:
    """The tracker ``name``. Raises `ConfigError` with the nearest for an unknown one."""
    for kind in KINDS:
        if kind == name:
            return kind
    raise ConfigError(f"unknown tracker {titled(name)}.{nearest(name, KINDS)}")


class Tracking(NamedTuple):
    """The chosen tracker, if any, with its project and run names. TensorBoard uses folders, not names."""

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
    """Event files in the run folder: ``tensorboard --logdir RUN/tensorboard``."""

    def __init__(self, tracking: Tracking, folder: Path, config: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(folder / "tensorboard"))

    def log(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))

    def finish(self) -> None:
        self.writer.close()


_TRACKERS = {
    "wandb": ("W&B", "wandb", _WandB),
    "tensorboard": ("TensorBoard", "torch.utils.tensorboard", _TensorBoard),
}


def _is_there(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    except Exception:  # such as a file of the user's that it cannot read: told when the tracker starts
        return True
    return True


@contextmanager
def tracked(tracking: Tracking, folder: Path, config: Mapping[str, Any]) -> Iterator[Callable[[Row], None]]:
    """Yield ``track(row)``, which sends a row to the chosen tracker and does nothing if none is chosen.

    The tracker starts with the first row. If it is not installed or fails, one warning is logged and the run goes on.
    A method that logs no rows leaves the tracker nothing, which is logged too.
    """
    tracker: Any = None
    left = tracking.kind is None
    name, module, start = _TRACKERS[tracking.kind or "wandb"]
    if not left and not _is_there(module):
        left = True
        log.warning("%s is missing: only metrics.jsonl gets losses (pip install %s)", name, tracking.kind)

    def tell(call: Callable[[Any], Any]) -> None:
        """Call ``call(tracker)``; after the first failure do nothing."""
        nonlocal tracker, left
        if left:
            return
        try:
            tracker = tracker or start(tracking, folder, config)
            call(tracker)
        except Exception as error:
            left = True
            log.warning("%s failed (%s): from now on only metrics.jsonl gets losses", name, error)

    try:
        yield lambda row: tell(lambda live: live.log(row))
        if tracker is None and not left:
            log.warning("%s got nothing: no losses were logged", name)
    finally:
        if tracker is not None:
            tell(lambda live: live.finish())
