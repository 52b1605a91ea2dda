"""Weights & Biases where it is installed and configured; never required."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mu.core.loop import Log

log = logging.getLogger("mu")


def _configured() -> bool:
    """Whether the user set up W&B: a mode, a key, or a login."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return os.environ.get("WANDB_MODE") != "disabled"
    netrc = Path.home() / ".netrc"
    return netrc.exists() and "wandb" in netrc.read_text(encoding="utf-8", errors="ignore")


@contextmanager
def tracked(project: str, run: str, config: Mapping[str, Any], record: Log | None, *, wanted: bool = False) -> Iterator[Log]:
    """``record`` with each row also sent to W&B, where it is ``wanted`` or configured.

    A tracker that fails is told once and does not stop the run.
    """
    tracker = None
    if wanted or _configured():
        try:
            import wandb

            tracker = wandb.init(project=project, name=run, config=dict(config))
        except ImportError:
            log.info("W&B is wanted but not installed: losses go to metrics.jsonl alone (pip install 'mu-unlearning[track]')")
        except Exception as error:
            log.warning("W&B could not start (%s): losses go to metrics.jsonl alone", error)

    def tell(call: Callable[[Any], Any]) -> None:
        """``call(tracker)`` while there is one; the first that fails is the last."""
        nonlocal tracker
        if tracker is not None:
            try:
                call(tracker)
            except Exception as error:
                tracker = None
                log.warning("W&B failed (%s): from here on losses go to metrics.jsonl alone", error)

    def both(row: Mapping[str, float]) -> None:
        if record is not None:
            record(row)
        tell(lambda live: live.log(dict(row)))

    try:
        yield both
    finally:
        tell(lambda live: live.finish())
