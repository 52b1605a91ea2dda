"""Vision-language models of the LLaVA type: they answer questions about images, and an edit may change their parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaForConditionalGeneration
from typing_extensions import Self

from mu.core.config import filled
from mu.core.errors import ModelError, titled
from mu.models.clip import pixels_of
from mu.models.formats.folder import open_part
from mu.models.tokenizers import check_vocabulary

PROMPT = "USER: <image>\n{} ASSISTANT:"
"""The prompt format that LLaVA-1.5 was trained with."""


class VisionLanguageModel:
    """LLaVA with its tokenizer. ``components`` are ``vision_model``, ``language_model`` and ``projector``.

    ``vision_model`` has the names of the CLIP that it came from, so that an edit of that CLIP's vision tower fits."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: Any,
        processor: Any,
        name: str,
        device: torch.device | str = "cpu",
    ):
        self.name, self.device = name, torch.device(device)
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.tokenizer, self.processor = tokenizer, processor
        self.source: Path | None = None
        """The folder or file that the model was loaded from, if it was loaded by name."""
        self.components: dict[str, nn.Module] = {
            "vision_model": model.model.vision_tower,
            "projector": model.model.multi_modal_projector,
            "language_model": model.model.language_model,
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
            model = open_part(LlavaForConditionalGeneration, Path(folder), precision)
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, padding_side="left"
            )
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the LLaVA model in {folder} cannot be read ({str(error).splitlines()[0][:200]}): copy it again"
            ) from None
        check_vocabulary(tokenizer, model.config.text_config.vocab_size, f"the tokenizer of {titled(name)}")
        return cls(model, tokenizer, processor, name, device)

    @property
    def image_tokens(self) -> int:
        """Number of tokens that one image takes in the prompt."""
        vision = self.model.config.vision_config
        whole = self.model.config.vision_feature_select_strategy == "full"
        return (vision.image_size // vision.patch_size) ** 2 + int(whole)

    def reads(self, parameter: str) -> bool:
        """True if answers depend on ``parameter`` (full name). LLaVA-1.5 reads the last vision layer but one."""
        component, _, path = parameter.partition(".")
        try:
            self.components[component].get_parameter(path)
        except (KeyError, AttributeError):
            return False
        if component != "vision_model":
            return True
        taken, depth = self.model.config.vision_feature_layer, self.model.config.vision_config.num_hidden_layers
        deepest = max(k if k >= 0 else depth + 1 + k for k in (taken if isinstance(taken, list) else [taken]))
        if path.startswith("encoder.layers."):
            return int(path.split(".")[2]) < deepest
        return path.startswith(("embeddings.", "pre_layrnorm."))

    @torch.no_grad()
    def answer(
        self, images: Tensor | Sequence[Image], questions: Sequence[str], *, batch_size: int = 32, new_tokens: int = 16
    ) -> list[str]:
        """Answer ``questions[i]`` about image i by greedy decoding. Images: (b, 3, H, W) in 0..1, or PIL images."""
        size = int(self.model.config.vision_config.image_size)
        texts = [filled(PROMPT, question).replace("<image>", "<image>" * self.image_tokens) for question in questions]
        if self.tokenizer.bos_token:
            texts = [self.tokenizer.bos_token + text for text in texts]
        answers: list[str] = []
        for start in range(0, len(texts), batch_size):
            part = slice(start, start + batch_size)
            pixels = pixels_of(images[part], self.processor, size).to(self.device, self.model.dtype)
            tokens = self.tokenizer(texts[part], padding=True, add_special_tokens=False, return_tensors="pt").to(
                self.device
            )
            out = self.model.generate(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                pixel_values=pixels,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            new = out[:, tokens.input_ids.shape[1] :]
            answers += [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers
