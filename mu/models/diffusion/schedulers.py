"""Noise schedulers for training, built from constants and not from the checkpoint, and learning rate schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, LMSDiscreteScheduler

from mu.core.errors import ConfigError, nearest, titled

TRAINING_SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "lms": (LMSDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
}


def training_scheduler(name: str) -> Any:
    """Build a scheduler from the constants of Stable Diffusion, not from the checkpoint (specification of SPM, 2.1).

    For DDIM: leading spacing, offset 0, final alpha 1; the 30-step grid is 957, 924, ..., 0.
    """
    if name not in TRAINING_SCHEDULERS:
        raise ConfigError(f"unknown noise scheduler {titled(name)}.{nearest(name, TRAINING_SCHEDULERS)}")
    kind, options = TRAINING_SCHEDULERS[name]
    try:
        return kind(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, **options
        )
    except ImportError:  # diffusers integrates LMS's coefficients with scipy
        raise ConfigError(
            f"noise scheduler {titled(name)} needs the package scipy: pip install scipy, or choose ddim"
        ) from None


def learning_rate_schedule(
    name: str,
    optimizer: torch.optim.Optimizer,
    iterations: int,
    *,
    warmup: int = 0,
    cycles: int = 1,
    power: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.lr_scheduler.LRScheduler:
    """Make a schedule by name: any of diffusers, ``one_cycle`` (torch) or ``adafactor:<lr>`` (transformers).

    ``cosine_with_restarts`` at step i >= W = ``warmup``: lr * max(0, (1 + cos(pi * frac(cycles (i - W) / (T - W)))) /
    2).
    """
    if name == "one_cycle":
        rate, share = optimizer.param_groups[0]["lr"], min(max(warmup, 1) / iterations, 0.9)
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=iterations + 1, pct_start=share, **(options or {})
        )
    if name.startswith("adafactor:"):
        from transformers.optimization import AdafactorSchedule

        try:
            return AdafactorSchedule(optimizer, float(name.split(":")[1]))
        except ValueError:
            raise ConfigError(f"learning rate schedule {titled(name)} is not of the form adafactor:<lr>") from None
    from diffusers.optimization import SchedulerType, get_scheduler

    known = [kind.value for kind in SchedulerType]
    if name not in known:
        raise ConfigError(f"unknown learning rate schedule {titled(name)}.{nearest(name, [*known, 'one_cycle'])}")
    named = {"constant": {}, "constant_with_warmup": {"num_warmup_steps": warmup}}
    common = {"num_warmup_steps": warmup, "num_training_steps": iterations, "num_cycles": cycles, "power": power}
    try:
        return get_scheduler(name, optimizer, **named.get(name, common), **(options or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.lr_scheduler_args do not fit {titled(name)}: {error}") from None
