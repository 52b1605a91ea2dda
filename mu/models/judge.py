"""An image classifier with several heads, as evidence: any transformers image classifier whose labels are ``head/class``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, CLIPImageProcessorPil
from typing_extensions import Self

from mu.core.errors import ModelError
from mu.models.clip import prepare


def heads(id2label: dict[int, str]) -> dict[str, slice]:
    """The columns of each head, from labels of the form ``head/class``."""
    names = [id2label[k].split("/")[0] for k in range(len(id2label))]
    return {head: slice(names.index(head), names.index(head) + names.count(head)) for head in dict.fromkeys(names)}


class Judge:
    """Reads styles, objects and identities off pictures. ``classes[head]`` lists what a head can answer."""

    def __init__(self, model: Any, processor: Any, device: torch.device | str = "cpu"):
        self.model, self.processor, self.device = model.requires_grad_(False).eval().to(device), processor, torch.device(device)
        labels = {int(k): label for k, label in model.config.id2label.items()}
        self.heads = heads(labels)
        self.classes = {head: [labels[k].split("/", 1)[1] for k in range(s.start, s.stop)] for head, s in self.heads.items()}

    @classmethod
    def open(cls, folder: Path | str, device: torch.device | str = "cpu") -> Self:
        try:
            model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise ModelError(f"the judge in {folder} cannot be read ({str(error).splitlines()[0][:200]})") from None
        return cls(model, processor, device)

    @torch.no_grad()
    def look(self, pictures: Tensor) -> tuple[dict[str, list[str]], Tensor]:
        """Pictures (b, 3, H, W) in 0..1 -> the answer of each head for each picture, and features (b, d)."""
        size = self.processor.crop_size
        size = size["height"] if isinstance(size, dict) or hasattr(size, "keys") else int(getattr(size, "height", size))
        pixels = prepare(pictures.to(self.device), size, self.processor.image_mean, self.processor.image_std)
        out = self.model(pixel_values=pixels, output_hidden_states=True)
        answers = {
            head: [self.classes[head][k] for k in out.logits[:, span].argmax(1).tolist()] for head, span in self.heads.items()
        }
        return answers, out.hidden_states[-1].mean(dim=(2, 3))
