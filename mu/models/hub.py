"""Models by hub id: the files of a repository decide how it is loaded."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from mu.core.errors import ModelError, quoted, titled
from mu.models.places import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, PIPELINE, TRANSFORMERS_CONFIG, check_name

WAIT, WAIT_CACHED = 10.0, 2.0
"""Seconds for an answer of the hub: a machine without a network should not wait for what it has."""


class NotThere(ModelError):
    """A repository of the hub that is neither cached nor available. ``why`` is what the hub said."""

    def __init__(self, name: str, why: str, advice: str):
        self.why = why
        super().__init__(f"{titled(name)} is not in the local cache and cannot be downloaded: {advice} ({why})")


def hub_folder(name: str, instead: str = "canvas") -> Path:
    """Download the files that diffusers, transformers or open_clip need of the hub's repository ``name``.

    Returns their folder. If the hub does not answer, the local cache is used: after `WAIT` seconds, or `WAIT_CACHED`
    where the cache has the repository. Raises `ModelError` if the name is not a hub id, and `NotThere` if the
    repository is neither cached nor available; it advises ``instead``, which needs no network.
    """
    check_name(name)
    cached = _cached(name)
    try:
        info = HfApi().model_info(name, timeout=WAIT_CACHED if cached else WAIT)
        files = [file.rfilename for file in info.siblings or ()]
    except Exception as error:
        if cached:
            return cached
        raise not_there(name, error, instead) from None
    try:
        if PIPELINE in files:
            return _pipeline_folder(name, files)
        return Path(snapshot_download(name, allow_patterns=_needed(files)))
    except ModelError:
        raise
    except Exception as error:
        raise not_there(name, error, instead) from None


def _cached(name: str) -> Path | None:
    """The folder of the repository in the local cache, if it has one that says what it holds. Asks no network."""
    with contextlib.suppress(Exception):
        folder = Path(snapshot_download(name, local_files_only=True))
        if any((folder / file).exists() for file in (PIPELINE, TRANSFORMERS_CONFIG, OPEN_CLIP_CONFIG)):
            return folder
    return None


def _pipeline_folder(name: str, files: Sequence[str]) -> Path:
    from diffusers import DiffusionPipeline

    from mu.models.diffusion.border import check_family
    from mu.models.formats.folder import variant_of

    check_family(DiffusionPipeline.load_config(name).get("_class_name"), name)
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    variants = {
        variant_of((file.partition("/")[2] for file in files if file.startswith(f"{part}/")), f"{name}/{part}")
        for part in parts
    }
    return Path(DiffusionPipeline.download(name, variant=next(filter(None, variants), None)))


def _needed(files: Sequence[str]) -> list[str]:
    """Select the weights of one library; repositories often hold the same weights for several."""
    top = [file for file in files if "/" not in file]
    forms = ("model*.safetensors", "pytorch_model*.bin") if TRANSFORMERS_CONFIG in top else OPEN_CLIP_WEIGHTS
    weights: list[str] = next(filter(None, (fnmatch.filter(top, form) for form in forms)), [])
    return [file for file in top if file.endswith((".json", ".txt", ".model"))] + weights


def not_there(name: str, error: Exception, instead: str) -> NotThere:
    advice = f"download it on a machine with network and name its folder, or use {quoted(instead)}"
    return NotThere(name, reason(error), advice)


def reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
