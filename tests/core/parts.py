"""What the processes of test_workers.py do. It imports little, so that they begin soon."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from mu.core.errors import ConfigError


def leave(folder: Path, what: str) -> None:
    """Write a file, and then be refused, break, die, or sleep long, as the name says."""
    (folder / f"{what}.txt").write_text(str(os.getpid()))
    print("not for the terminal")
    if what == "refuses":
        raise ConfigError("this part cannot be made")
    if what == "breaks":
        raise KeyError("name")
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleeps":
        time.sleep(600)
