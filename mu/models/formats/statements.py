"""What a single file says of itself: marker tensors, metadata, a noise schedule, and a ``.yaml`` beside it.

Tools that train or merge models write them in several ways. Every statement is obeyed or refused; the layer of the text
encoder, which is an option of loading, is told if it differs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mu.core.config import read_yaml
from mu.core.errors import ConfigError, ModelError, quoted
from mu.core.files import write_text

log = logging.getLogger("mu")

_KINDS = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction", "v-prediction":
    "v_prediction", "sample": "sample", "x0": "sample",
}  # fmt: skip
_SCALINGS = {"EpsScaling": "epsilon", "VScaling": "v_prediction"}
"""Classes of SGM that say what the UNet predicts."""
_ARCHITECTURES = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}
_FAMILIES = {
    "sd1": ("stable-diffusion-v1",),
    "sd2": ("stable-diffusion-v2",),
    "sdxl": ("stable-diffusion-xl",),
    "": (
        "stable-diffusion-3",
        "stable-diffusion-v3",
        "stable-cascade",
        "flux",
        "auraflow",
        "pixart",
        "hunyuan",
        "sana",
    ),
}
"""How `modelspec.architecture` begins, by what the tensors are; others mean nothing to mu."""
WRITTEN = "# How the weights beside are used. Written by mu merge."
"""The first line of a ``.yaml`` that belongs to a merged file."""
_SCHEDULE_TOLERANCE = 0.01
"""Half precision and merging move the kept alphas_cumprod by less; another schedule differs by more."""


@dataclass
class Statements:
    """What a file says: ``predictions`` by where it is said, and settings of the parts."""

    predictions: dict[str, str] = field(default_factory=dict)
    architecture: str = ""
    zero_snr: bool = False
    scheduler: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    unet: dict[str, Any] = field(default_factory=dict)

    def prediction(self, path: Path) -> str | None:
        """The prediction type. Raises `ModelError` if the statements differ."""
        if len(set(self.predictions.values())) > 1:
            said = ", ".join(f"{kind} ({place})" for place, kind in self.predictions.items())
            raise ModelError(f"{path} says two things of what the UNet predicts: {said}; pass its prediction_type")
        return next(iter(self.predictions.values()), None)


def statements(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> Statements:
    """Everything that the file at ``path`` says, and the ``.yaml`` beside it. `ModelError` for what mu cannot do."""
    said = in_file(tensors, metadata, path)
    beside = next((file for file in beside_file(path) if file.is_file()), None)
    if beside is not None:
        _read_yaml(beside, said)
    return said


def in_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> Statements:
    """What the file at ``path`` says by itself. Raises `ModelError` for what mu cannot do."""
    said = Statements()
    if edm := next((name for name in tensors if name.startswith("edm_")), None):
        raise _edm(path, edm)
    if "v_pred" in tensors:
        said.predictions["v_pred"] = "v_prediction"
    said.zero_snr = "ztsnr" in tensors
    _read_metadata(metadata, path, said)
    return said


def beside_file(path: Path) -> tuple[Path, Path]:
    """The files that may describe the single file ``path``; the first that exists is read."""
    return path.with_suffix(".yaml"), path.with_suffix(".yml")


def restated(metadata: Mapping[str, str], prediction_type: str, zero_snr: bool) -> dict[str, str]:
    """``metadata`` that say this prediction type, and of pure noise nothing else than ``zero_snr``."""
    says_other = {
        "ss_v_parameterization": prediction_type != "v_prediction",
        "ss_zero_terminal_snr": not zero_snr,
        "modelspec.architecture": _ARCHITECTURES.get(
            str(metadata.get("modelspec.architecture")).lower(), prediction_type
        )
        != prediction_type,
    }
    kept = {key: value for key, value in metadata.items() if not says_other.get(key)}
    kind = {"v_prediction": "v"}.get(prediction_type, prediction_type)
    return kept | {"modelspec.prediction_type": kind}


def write_yaml(file: Path, settings: Mapping[str, Any]) -> None:
    """Write ``settings`` of ``model.params`` (see `statements`) as the ``.yaml`` beside a single file."""
    write_text(file, f"{WRITTEN}\n{yaml.safe_dump({'model': {'params': dict(settings)}})}")


def is_written(file: Path) -> bool:
    """Whether ``file`` is one of `write_yaml`."""
    try:
        return file.read_text(encoding="utf-8").startswith(WRITTEN)
    except (OSError, ValueError):
        return False


def check_family(said: Statements, family: str, path: Path) -> None:
    """Raise `ModelError` if the file names another architecture than its tensors have, those of ``family``."""
    stated = [
        name for name, begins in _FAMILIES.items() for begin in begins
        if re.match(rf"{begin}(?![a-z])", said.architecture)
    ]  # fmt: skip
    if stated and stated != [family]:
        raise ModelError(
            f"{path} says that it is {quoted(said.architecture)} (modelspec.architecture), and its tensors are "
            f"{_FAMILIES[family][0]}'s: mend its metadata, or use another copy"
        )


def tell_layer(metadata: Mapping[str, str], path: Path, clip_skip: int) -> None:
    """Warn if the metadata state another layer of the text encoder than ``clip_skip``, which SDXL does not choose."""
    stated = metadata.get("modelspec.encoder_layer") or ""
    if stated.isdecimal() and int(stated) != clip_skip and "xl" not in metadata.get("modelspec.architecture", ""):
        log.warning("%s says that it was trained with clip_skip %s, and is loaded with %s", path, stated[:9], clip_skip)


def check_schedule(tensors: Mapping[str, Tensor], scheduler: Any, path: Path) -> None:
    """Raise `ModelError` if the file holds another noise schedule than ``scheduler``, which it is opened with.

    A file whose schedule ends in pure noise may also hold the table from before it was rescaled: tools mark the file
    and leave the table as it is.
    """
    kept = tensors.get("alphas_cumprod")
    if kept is None:
        return
    tables = [scheduler.alphas_cumprod]
    if scheduler.config.get("rescale_betas_zero_snr"):
        tables.append(type(scheduler).from_config(scheduler.config, rescale_betas_zero_snr=False).alphas_cumprod)
    if not any(
        kept.shape == table.shape and torch.allclose(kept.float(), table, atol=_SCHEDULE_TOLERANCE) for table in tables
    ):
        raise ModelError(
            f"{path} holds a noise schedule of its own (alphas_cumprod), which is not that of Stable Diffusion: "
            "convert it to a diffusers folder with its own scheduler"
        )


def _edm(path: Path, where: str) -> ModelError:
    return ModelError(f"{path} is a model in the EDM formulation ({where}), which mu lacks: use another checkpoint")


def _kind(value: Any, where: str, path: Path) -> str:
    if "edm" in str(value).lower():
        raise _edm(path, where)
    kind = _KINDS.get(str(value).lower())
    if kind is None:
        raise ModelError(
            f"{path} says {quoted(str(value))} of what the UNet predicts ({where}), which mu does not know"
        )
    return kind


def _read_metadata(metadata: Mapping[str, str], path: Path, said: Statements) -> None:
    def text(key: str) -> str:
        return str(metadata.get(key) or "")

    if kind := text("modelspec.prediction_type"):
        said.predictions["modelspec.prediction_type"] = _kind(kind, "modelspec.prediction_type", path)
    if text("ss_v_parameterization").lower() in ("true", "1"):
        said.predictions["ss_v_parameterization"] = "v_prediction"
    said.zero_snr |= text("ss_zero_terminal_snr").lower() in ("true", "1")
    architecture = said.architecture = text("modelspec.architecture").lower()
    if "edm" in architecture:
        raise _edm(path, "modelspec.architecture")
    if architecture in _ARCHITECTURES:
        said.predictions["modelspec.architecture"] = _ARCHITECTURES[architecture]
    width, _, height = text("modelspec.resolution").lower().partition("x")
    if width.isdecimal() and width == height and len(width) < 5 and int(width) % 64 == 0 and int(width):
        said.unet["sample_size"] = int(width) // 8
    if (span := text("modelspec.timestep_range").replace(" ", "")) not in ("", "0,1000", "0,999"):
        raise ModelError(
            f"{path} was trained on the timesteps {span[:40]} only (modelspec.timestep_range): name a whole model"
        )


def _read_yaml(file: Path, said: Statements) -> None:
    try:
        content = read_yaml(file)
    except ConfigError as error:
        raise ModelError(f"{error}, and it describes the model beside it: mend or remove it") from None
    values = dict(_settings(content))
    if (value := values.get("parameterization")) is not None:
        said.predictions[file.name] = _kind(value, "parameterization", file)
    for target in (str(values.get(key) or "") for key in ("scaling_config.target", "denoiser_config.target")):
        name = target.rpartition(".")[2]
        if "EDM" in name:
            raise _edm(file, target[:80])
        if name in _SCALINGS:
            said.predictions[file.name] = _SCALINGS[name]
    said.zero_snr |= bool(values.get("zero_snr") or values.get("rescale_betas_zero_snr"))
    for key, known in (("timesteps", ("1000",)), ("beta_schedule", ("linear", "scaled_linear"))):
        if values.get(key) is not None and str(values[key]) not in known:
            told = f"{key} {quoted(values[key])}, and mu knows {known[0]} for a single file"
            raise ModelError(f"{file} says that the model beside it has {told}: use a diffusers folder of the model")
    for key, setting in (("linear_start", "beta_start"), ("linear_end", "beta_end")):
        if (value := values.get(key)) is not None:
            said.scheduler[setting] = _number(value, key, file)
    if (value := values.get("scale_factor")) is not None:
        said.vae["scaling_factor"] = _number(value, "scale_factor", file)


def _settings(content: Any) -> Iterator[tuple[str, Any]]:
    """Settings of a config of CompVis or SGM: those of ``model.params``, and the targets of its denoiser."""
    params = content.get("model") if isinstance(content, dict) else None
    params = params.get("params") if isinstance(params, dict) else None
    if not isinstance(params, dict):
        return
    yield from ((key, value) for key, value in params.items() if isinstance(key, str))
    denoiser = params.get("denoiser_config")
    if not isinstance(denoiser, dict):
        return
    yield "denoiser_config.target", denoiser.get("target")
    inner = denoiser.get("params")
    scaling = inner.get("scaling_config") if isinstance(inner, dict) else None
    if isinstance(scaling, dict):
        yield "scaling_config.target", scaling.get("target")


def _number(value: Any, key: str, file: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 100:
        raise ModelError(f"{file} has {key} = {quoted(str(value))}, which is not a number in 0..100: mend or remove it")
    return float(value)
