"""Judge images with any transformers image classifier. Labels of the form ``head/class`` make several heads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, CLIPImageProcessorPil
from transformers.image_processing_base import ImageProcessingMixin
from typing_extensions import Self

from mu.core.errors import ModelError, titled
from mu.core.files import writing
from mu.models.clip import prepare
from mu.models.hub import NotThere, hub_folder
from mu.models.places import EMBEDDED
from mu.models.quiet import quiet_libraries

RANDOM = "random"
"""The backbone of `Judge.new` that needs no download: the small network of the embedded world's judge, untrained."""

ADVICE = "name a folder, a hub id in the local cache, or canvas-judge"


def heads(id2label: dict[int, str]) -> dict[str, slice]:
    """Columns of each head, from labels ``head/class``. Plain labels of a stock classifier form one head, ``class``."""
    labels = [id2label[k] for k in range(len(id2label))]
    if not all("/" in label for label in labels):
        return {"class": slice(0, len(labels))}
    names = [label.split("/")[0] for label in labels]
    return {head: slice(names.index(head), names.index(head) + names.count(head)) for head in dict.fromkeys(names)}


class Judge:
    """Recognises styles, objects and identities in images. ``classes[head]`` lists the possible answers of a head."""

    def __init__(self, model: Any, processor: Any, device: torch.device | str = "cpu"):
        self.model, self.processor, self.device = (
            model.requires_grad_(False).eval().to(device),
            processor,
            torch.device(device),
        )
        self.name, self.components = "the classifier", {"classifier": self.model}
        labels = {int(k): label for k, label in model.config.id2label.items()}
        self.heads = heads(labels)
        self.classes = {
            head: [labels[k].removeprefix(f"{head}/") for k in range(s.start, s.stop)] for head, s in self.heads.items()
        }

    @classmethod
    def open(cls, folder: Path | str, device: torch.device | str = "cpu", advice: str = ADVICE) -> Self:
        """Load from a transformers folder, or by hub id.

        Raises `ModelError`, with ``advice``, for what cannot be read or downloaded."""
        try:
            place = Path(folder) if Path(folder).is_dir() else hub_folder(str(folder))
        except NotThere as missing:
            raise NotThere(str(folder), missing.why, f"download it on a machine with network, and {advice}") from None
        try:
            with quiet_libraries():
                model = AutoModelForImageClassification.from_pretrained(
                    place, dtype=torch.float32, local_files_only=True, trust_remote_code=False
                )
                processor = CLIPImageProcessorPil.from_pretrained(place, local_files_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0][:200]
            raise ModelError(f"the classifier {titled(str(folder))} cannot be read ({reason}): {advice}") from None
        return cls(model, processor, device)

    @classmethod
    def new(
        cls, head: str, classes: Sequence[str], backbone: str = RANDOM, *, size: int | None = None, seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:  # fmt: skip
        """Make a judge with a new ``head`` of ``classes`` on ``backbone``: `RANDOM`, a transformers folder or a hub id.

        ``size`` is the side of the images in pixels. Default: the backbone's own, 64 for `RANDOM`. A backbone whose
        last layer has the same number of classes keeps that layer's weights.
        """
        labels = [f"{head}/{name}" for name in classes]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, look = _network(backbone, labels)
        side = size or _side(look.get("crop_size", look.get("size", 224)))
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": side},
            crop_size=side,
            **{name: look[name] for name in ("image_mean", "image_std") if name in look},
        )
        return cls(model, processor, device)

    def save(self, folder: Path) -> None:
        """Write a transformers folder that `open` and ``AutoModelForImageClassification`` read.

        An interrupted save leaves no ``config.json`` of a partial model. Other files in ``folder`` stay. Raises
        `OutputError` if the folder cannot be written.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=folder, prefix=".model-"))
            try:
                self.model.save_pretrained(partial)
                self.processor.save_pretrained(partial)
                for path in sorted(
                    partial.iterdir(), key=lambda path: path.name == "config.json"
                ):  # last: its presence means a whole model
                    path.replace(folder / path.name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def inputs(self, images: Tensor) -> Tensor:
        """Prepare images (b, 3, H, W) in 0..1 for the network."""
        share = getattr(self.processor, "crop_pct", None) or 1.0  # ImageNet: 0.875, the middle 224 of 256 px
        h, w = images.shape[-2:]
        inner = round(min(h, w) * share)
        top, left = ((h - inner) // 2, (w - inner) // 2) if share < 1 else (0, 0)
        seen = images[..., top : h - top, left : w - left].to(self.device)
        side = _side(getattr(self.processor, "crop_size", None) or self.processor.size)
        return prepare(seen, side, self.processor.image_mean, self.processor.image_std)

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[dict[str, list[str]], Tensor]:
        """Return the answer of each head for each image (b, 3, H, W) in 0..1, and features (b, d)."""
        out = self.model(pixel_values=self.inputs(images), output_hidden_states=True)
        answers = {
            head: [self.classes[head][k] for k in out.logits[:, span].argmax(1).tolist()]
            for head, span in self.heads.items()
        }
        last = out.hidden_states[-1]
        return answers, last.mean(dim=(2, 3) if last.ndim == 4 else 1)  # mean over positions, or over tokens

    @torch.no_grad()
    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps (b, c, h, w) after the stem and each stage of a convolutional network, for images as `look`."""
        maps = list(self.model(pixel_values=self.inputs(images), output_hidden_states=True).hidden_states)
        if any(features.ndim != 4 for features in maps):
            raise ModelError(f"a {type(self.model).__name__} has no feature maps: use a convolutional network")
        return maps

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the last layer alone, which the backbone does not have."""
        inner = {id(parameter) for parameter in self.model.base_model.parameters()}
        own = [parameter for parameter in self.model.parameters() if id(parameter) not in inner]
        if not own:
            raise ModelError(f"a {type(self.model).__name__} does not separate its last layer: train all layers")
        return own


def _network(backbone: str, labels: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Make a network with a last layer for ``labels``; also return the settings in its processor's file."""
    place: Any = EMBEDDED["canvas-judge"] if backbone == RANDOM else backbone
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: k for k, label in enumerate(labels)}}
    if not Path(place).is_dir():
        try:
            place = hub_folder(str(place), RANDOM)
        except ModelError as error:
            raise ModelError(f"the backbone {error}") from None
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        if backbone == RANDOM:
            config = AutoConfig.from_pretrained(place, **names, **local)
            model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
        else:
            model = AutoModelForImageClassification.from_pretrained(
                place, dtype=torch.float32, ignore_mismatched_sizes=True, **names, **local
            )
        look, _ = ImageProcessingMixin.get_image_processor_dict(place, **local)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ModelError(
            f"the backbone {titled(backbone)} cannot be read ({reason}): name another folder, or {RANDOM}"
        ) from None
    return model, look


def _side(size: Any) -> int:
    """Read 224 from 224, ``{"height": 224, "width": 224}``, ``{"shortest_edge": 224}`` or such attributes."""
    if isinstance(size, int):
        return size
    told = size if isinstance(size, dict) else vars(size)
    return int(next(told[name] for name in ("height", "shortest_edge") if told.get(name)))
