"""Devices as users write them. Does not import torch; `compute` finds the device itself."""

from __future__ import annotations

import re

from mu.core.errors import ConfigError, quoted

_DEVICE = re.compile(r"(auto|cpu|mps|cuda(:[0-9]{1,4})?|[0-9]{1,4})?")


def check_device(wanted: str) -> None:
    """Raise `ConfigError` unless all comma-separated parts of ``wanted`` are devices: ``cpu``, ``cuda:1``, ``0``.

    Whether this machine has it, `mu.core.compute.pick_device` says.
    """
    for part in wanted.split(","):
        if not _DEVICE.fullmatch(part.strip()):
            raise ConfigError(f"unknown device {quoted(wanted)}; choose cpu, cuda, mps or GPU numbers like 0 or 0,1")
