"""CLIP as a model: images and texts in one space, and parts that an edit may touch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from typing_extensions import Self

from mu.core.errors import ModelError
from mu.models.tokenizers import check_vocabulary


def prepare(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (b, 3, H, W) in 0..1 -> model input (b, 3, size, size): shortest edge to ``size``, centre, normalise."""
    h, w = images.shape[-2:]
    if min(h, w) != size:
        scale = size / min(h, w)
        to = (max(size, round(h * scale)), max(size, round(w * scale)))
        images = F.interpolate(images, to, mode="bicubic", antialias=True).clamp(0, 1)
        h, w = to
    images = images[..., (h - size) // 2 : (h + size) // 2, (w - size) // 2 : (w + size) // 2]
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


def pixels_of(images: Tensor | Sequence[Image], processor: Any, size: int) -> Tensor:
    """Images (b, 3, H, W) in 0..1, or PIL images -> model input (b, 3, size, size), as ``processor`` says."""
    if isinstance(images, Tensor):
        return prepare(images, size, processor.image_mean, processor.image_std)
    return processor(images=list(images), return_tensors="pt").pixel_values


class ClipModel:
    """A CLIP with its tokenizer. ``components``: ``text_encoder`` and ``vision_model``, as a pipeline or a
    vision-language model that uses the tower names them, and the two projections."""

    def __init__(
        self, model: CLIPModel, tokenizer: CLIPTokenizer, processor: Any, name: str, device: torch.device | str = "cpu"
    ):
        self.name, self.device = name, torch.device(device)
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.tokenizer, self.processor = tokenizer, processor
        self.components: dict[str, nn.Module] = {
            "text_encoder": model.text_model, "vision_model": model.vision_model,
            "text_projection": model.text_projection, "visual_projection": model.visual_projection,
        }  # fmt: skip

    @classmethod
    def open(
        cls, folder: Path | str, name: str, *, device: torch.device | str = "cpu", precision: torch.dtype = torch.float32
    ) -> Self:
        """From a transformers folder."""
        try:
            model = CLIPModel.from_pretrained(folder, dtype=precision, local_files_only=True)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise ModelError(
                f"the CLIP in {folder} cannot be read ({str(error).splitlines()[0][:200]}): copy it again"
            ) from None
        check_vocabulary(tokenizer, model.config.text_config.vocab_size, f"the tokenizer of {name!r}")
        return cls(model, tokenizer, processor, name, device)

    @property
    def logit_scale(self) -> Tensor:
        """What the cosine similarities are multiplied by, () in float32: 100 in most published models."""
        return self.model.logit_scale.exp().float()

    def reads(self, parameter: str) -> bool:
        """Whether features depend on ``parameter`` (full name): on all that it has."""
        component, _, path = parameter.partition(".")
        try:
            self.components[component].get_parameter(path)
        except (KeyError, AttributeError):
            return False
        return True

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids (b, n), n the length of the longest text."""
        limit = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(list(texts), padding=True, max_length=limit, truncation=True, return_tensors="pt")
        return tokens.input_ids.to(self.device)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (b, d) in float32.

        The tokens end with the longest text of the batch. Attention looks back only and the end token is what is read, so
        what would fill up the context has no influence.
        """
        pooled = self.model.text_model(input_ids=self.tokens(texts)).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def preprocess(self, images: Tensor | Sequence[Image]) -> Tensor:
        """Images (b, 3, H, W) in 0..1, or PIL images of any size and mode -> model input (b, 3, size, size).

        Shortest edge to ``size``, bicubic, then the centre, normalised. PIL resizes in 8 bits, tensors are not rounded.
        """
        return pixels_of(images, self.processor, int(self.model.config.vision_config.image_size)).to(self.device)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Model input, as `preprocess` makes it -> unit vectors (b, d) in float32."""
        pooled = self.model.vision_model(pixel_values=pixels.to(self.device, self.model.dtype)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def encode_images(self, images: Tensor | Sequence[Image]) -> Tensor:
        """Images (b, 3, H, W) in 0..1, or PIL images -> unit vectors (b, d) in float32."""
        return self.encode_pixels(self.preprocess(images))

    encode_pictures = encode_images
    """The name before 0.1.0."""

    @torch.no_grad()
    def zero_shot(self, images: Tensor | Sequence[Image], texts: Sequence[str]) -> Tensor:
        """Logits (b, len(texts)): scaled cosine similarity of each image with each text."""
        return self.logit_scale * self.encode_images(images) @ self.encode_text(texts).T
