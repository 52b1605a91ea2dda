"""CLIP as a model: embeddings of images and texts in one space, and the components that an edit may change."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from typing_extensions import Self

from mu.core.errors import ModelError, titled
from mu.core.images import rgb
from mu.models.formats.folder import open_part
from mu.models.tokenizers import check_concepts, check_vocabulary, has_room

READ_AT_LARGEST = 2
"""The ``eos_token_id`` of a text config with which transformers reads the features at the largest token id."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files of a transformers folder that say how images are prepared."""

log = logging.getLogger("mu")


def prepare(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resize the shortest edge (bicubic), centre-crop, normalise: images (b, 3, H, W) in 0..1 -> (b, 3, size, size)."""
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
    """Prepare images (b, 3, H, W) in 0..1, or PIL images, with the settings of ``processor``: (b, 3, size, size)."""
    if isinstance(images, Tensor):
        return prepare(images, size, processor.image_mean, processor.image_std)
    return processor(images=[rgb(image) for image in images], return_tensors="pt").pixel_values


def clip_processor(size: int, **own: Any) -> CLIPImageProcessorPil:
    """CLIP's way to prepare images for a tower that reads (3, ``size``, ``size``); ``own`` replaces OpenAI's numbers.

    The shortest edge is resized to ``size`` (bicubic), then the centre is cut out and normalised.
    """
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **own)


def _processor_in(folder: Path, size: int) -> CLIPImageProcessorPil:
    """The image processor of ``folder``; without one, CLIP's own for images of ``size``, which is noted in the log."""
    if any((folder / name).exists() for name in PROCESSORS):
        return CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    log.warning(
        "%s has no %s: images are resized to %d (bicubic), centre-cropped and normalised with OpenAI's mean and std",
        folder,
        PROCESSORS[0],
        size,
    )
    return clip_processor(size)


class OpenClipNames(NamedTuple):
    """How open_clip holds a model: its name for each tensor of the transformers model, and its config."""

    names: Mapping[str, str]
    config: Mapping[str, Any]


class ClipModel:
    """A CLIP model with its tokenizer. ``components`` are ``text_encoder``, ``vision_model`` and the two projections.

    Pipelines and vision-language models use the same names for the two towers. The image tower may be timm's, which may
    project itself: then ``visual_projection`` has no parameters."""

    def __init__(
        self, model: CLIPModel, tokenizer: CLIPTokenizer, processor: Any, name: str, device: torch.device | str = "cpu"
    ):
        self.name, self.device = name, torch.device(device)
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.tokenizer, self.processor = tokenizer, processor
        self.source: Path | None = None
        """The folder or file that the model was loaded from, if it was loaded by name."""
        self.open_clip: OpenClipNames | None = None
        """Set if the weights are open_clip's."""
        self.components: dict[str, nn.Module] = {
            "text_encoder": model.text_model,
            "vision_model": model.vision_model,
            "text_projection": model.text_projection,
            "visual_projection": model.visual_projection,
        }

    @classmethod
    def open(
        cls,
        folder: Path | str,
        name: str,
        *,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
    ) -> Self:
        """Load from a transformers folder."""
        try:
            model = open_part(CLIPModel, Path(folder), precision)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            processor = _processor_in(Path(folder), int(model.config.vision_config.image_size))
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the CLIP model in {folder} cannot be read ({str(error).splitlines()[0][:200]}): copy it again"
            ) from None
        check_vocabulary(tokenizer, model.config.text_config.vocab_size, f"the tokenizer of {titled(name)}")
        if not has_room(tokenizer):
            raise ModelError(f"the tokenizer of {titled(name)} has no room for a word: set model_max_length to 77")
        return cls(model, tokenizer, processor, name, device)

    @property
    def logit_scale(self) -> Tensor:
        """The factor of the cosine similarities, () in float32: 100 in most published models."""
        return self.model.logit_scale.exp().float()

    def reads(self, parameter: str) -> bool:
        """True for every parameter (full name) that the model has: all of them affect the features."""
        component, _, path = parameter.partition(".")
        try:
            self.components[component].get_parameter(path)
        except (KeyError, AttributeError):
            return False
        return True

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids (b, n), padded to the longest text, n tokens.

        They are padded to the whole context where the padding itself may be the token that `ends` finds. Else the
        features of a text would depend on the others of its batch.
        """
        whole = self._reads_largest and (self.tokenizer.pad_token_id or 0) > self.tokenizer.eos_token_id
        options = {"max_length": self._length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(list(texts), padding="max_length" if whole else True, **options).input_ids.to(self.device)

    def ends(self, tokens: Tensor) -> Tensor:
        """Position (b,) in each row of ``tokens`` (b, n) at which the model reads the features of the text.

        The first end token of the config. A config that says ``eos_token_id: 2``, as older checkpoints do, reads at the
        largest id, and so does open_clip: the same place unless added tokens have larger ids.
        """
        found = tokens if self._reads_largest else tokens == self.model.config.text_config.eos_token_id
        return found.int().argmax(dim=1)

    @property
    def _reads_largest(self) -> bool:
        return self.model.config.text_config.eos_token_id == READ_AT_LARGEST

    @property
    def _length(self) -> int:
        """Number of tokens that the text encoder reads, with start and end."""
        return min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)

    def check_concepts(self, concepts: Iterable[str]) -> None:
        """Raise `ConfigError` for a concept that is too long for the text encoder."""
        check_concepts(concepts, self.tokenizer, self._length, self.name)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (b, d) in float32.

        Attention is causal and the features are read at `ends`, so padding after it has no influence.
        """
        pooled = self.model.text_model(input_ids=self.tokens(texts)).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def preprocess(self, images: Tensor | Sequence[Image]) -> Tensor:
        """Prepare images (b, 3, H, W) in 0..1, or PIL images of any size and mode: model input (b, 3, size, size).

        The shortest edge is resized to ``size`` (bicubic), then the image is centre-cropped and normalised. PIL images
        are resized in 8 bits; tensors are not rounded.
        """
        return pixels_of(images, self.processor, int(self.model.config.vision_config.image_size)).to(self.device)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Unit vectors (b, d) in float32 of the output of `preprocess`."""
        pooled = self.model.vision_model(pixel_values=pixels.to(self.device, self.model.dtype)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def encode_images(self, images: Tensor | Sequence[Image]) -> Tensor:
        """Unit vectors (b, d) in float32 of images (b, 3, H, W) in 0..1, or of PIL images."""
        return self.encode_pixels(self.preprocess(images))

    encode_pictures = encode_images
    """The name before 0.1.0."""

    @torch.no_grad()
    def zero_shot(self, images: Tensor | Sequence[Image], texts: Sequence[str]) -> Tensor:
        """Logits (b, len(texts)): scaled cosine similarity of each image with each text."""
        return self.logit_scale * self.encode_images(images) @ self.encode_text(texts).T
