"""The names of CLIP's losses, for settings: no library is imported. `contrastive` computes them."""

from __future__ import annotations

from typing import Literal

Objective = Literal["cosine", "contrastive"]
