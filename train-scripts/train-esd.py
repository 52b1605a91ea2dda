"""ESD by the name and with the defaults of its first program: see ``Esd.py``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from Esd import main

from mu.core.program import guarded

ckpt_path = Path("stable-diffusion/models/ldm/sd-v1-4-full-ema.ckpt")
"""The model, a CompVis checkpoint: change it here, or pass --ckpt_path. The UNet's config follows from the weights."""

if __name__ == "__main__":
    sys.exit(guarded(partial(main, 1000, ckpt_path)))
