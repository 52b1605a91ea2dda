"""A CLIP of ViT-B/32's shapes with random weights, which knows synthetic images by synthetic names: see
slug_speed.py."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from mu.models.canvas.architecture import new_tokenizer
from mu.models.clip import ClipModel
from mu.models.zero_shot import ZeroShot


@dataclass(frozen=True)
class Drawn:
    """Smooth noise: one pattern for each class, and a little of its own for each image."""

    caption: str
    label: int
    number: int

    def image(self) -> Image.Image:
        own, each = (
            np.random.default_rng(seed).random((8, 8, 3)) for seed in ((1, self.label), (2, self.label, self.number))
        )
        return Image.fromarray((255 * (0.8 * own + 0.2 * each)).astype(np.uint8)).resize(
            (224, 224), Image.Resampling.BICUBIC
        )


def vit_b_32(names: int, images: int) -> tuple[ClipModel, list[ZeroShot], list[Drawn], list[Drawn]]:
    """The model, its tasks, forget pairs of the first name, retain pairs of the others.

    Half of the images show the people, half a third as many objects; names are four words, as many tokens as names have
    in CLIP.
    """
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 77
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=special))
    clip = ClipModel(model, tokenizer, CLIPImageProcessorPil(), "ViT-B/32, random")
    words = sorted(word.removesuffix("</w>") for word in tokenizer.get_vocab() if re.fullmatch(r"[a-z]{4,}</w>", word))
    rng = np.random.default_rng(0)
    called = [" ".join(rng.choice(words, 4, replace=False)) for _ in range(names + max(2, names // 3))]
    templates = (
        "a {} image",
        "photo of a {}",
        "a painting of a {}",
        "a drawing of the {}",
        "a big {}",
        "a small {}",
        "a picture of the {}",
    )
    tasks, first = [], 0
    for name, classes, prompts in (("identity", called[:names], ("{}.",)), ("imagenet", called[names:], templates)):
        labels = tuple(k % len(classes) for k in range(images // 2))
        shown = [Drawn(classes[label], first + label, k) for k, label in enumerate(labels)]
        tasks.append(ZeroShot(name, tuple(classes), prompts, shown, labels))
        first += len(classes)
    with torch.no_grad():
        seen = [image for task in tasks for image in task.images]
        pixels = clip.preprocess([image.image() for image in seen])
        pooled = torch.cat([model.vision_model(pixel_values=part).pooler_output for part in pixels.split(32)])
        wanted = torch.cat([task.weights(clip.encode_text(task.prompts))[list(task.labels)] for task in tasks])
        wanted = wanted - 0.9 * wanted.mean(dim=0)  # what all names share tells none of them apart
        fitted = torch.linalg.lstsq(pooled.double(), wanted.double(), driver="gelsd").solution
        model.visual_projection.weight.copy_(fitted.T)
    forget = [Drawn(f"{called[0]}.", 0, 1000 + k) for k in range(16)]
    retain = [Drawn(f"{called[k % names]}.", k % names, 2000 + k) for k in range(1, 33)]
    return clip, tasks, forget, retain
