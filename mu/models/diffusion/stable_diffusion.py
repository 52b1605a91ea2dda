"""Stable Diffusion 1.x, 2.x and XL, and similar models: a UNet with cross-attention to CLIP's prompt embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import Transformer2DModel
from torch import Tensor, nn

from mu.models.diffusion.base import DiffusionModel, Layer, Role
from mu.models.diffusion.conditioning import Conditioning
from mu.models.diffusion.noise import NoiseLevel
from mu.models.diffusion.text import TextEncoder


class StableDiffusion(DiffusionModel):
    """SD 1.x and 2.x, with one text encoder.

    Its hidden state ``clip_skip`` layers from the end (1: the last) is used, after the final norm."""

    backbone_name: ClassVar[str] = "unet"

    @property
    def unet(self) -> Any:
        return self.backbone

    def text_encoders(self, pipeline: Any) -> list[TextEncoder]:
        return [TextEncoder("text_encoder", pipeline.tokenizer, pipeline.text_encoder)]

    def prompt_embedding(self, k: int, output: Any) -> Tensor:
        if self.clip_skip == 1:
            return output.last_hidden_state
        module = self.text[k].module
        return getattr(module, "text_model", module).final_layer_norm(output.hidden_states[-self.clip_skip])

    def layers(self, role: Role) -> dict[str, Layer]:
        ends = {
            "text-keys": ".attn2.to_k.weight",
            "text-values": ".attn2.to_v.weight",
            "cross-attention": ".attn2.",
            "transformer": "",
        }[role]
        return {
            name: layer
            for name, layer in self._in_transformers().items()
            if (ends in name if role in ("cross-attention", "transformer") else name.endswith(ends))
        }

    def cross_attentions(self) -> list[Any]:
        return [module for name, module in self.backbone.named_modules() if name.endswith(".attn2")]

    def _in_transformers(self) -> dict[str, Layer]:
        found: dict[str, Layer] = {}
        for path, block in self.backbone.named_modules():
            if isinstance(block, Transformer2DModel):
                for inner, layer in block.named_modules():
                    if isinstance(layer, (nn.Linear, nn.Conv2d)):
                        found[f"unet.{path}.{inner}.weight"] = layer
        return found

    def evaluate(self, x: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
        added = self.added_conditioning(conditioning)
        return self._forward(x, level.t, conditioning.sequence, added_cond_kwargs=added).sample

    def added_conditioning(self, conditioning: Conditioning) -> dict[str, Tensor | None] | None:
        """Conditioning of the UNet in addition to the prompt embeddings."""
        return None

    def conditioning_of(self, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
        return args[2] if len(args) > 2 else options["encoder_hidden_states"]

    def reads(self, parameter: str) -> bool:
        """True if images depend on ``parameter``. False for layers after a text encoder's hidden state that is used."""
        component, _, path = parameter.partition(".")
        if not super().reads(parameter):
            return False
        text = next((text for text in self.text if text.component == component), None)
        if text is None:
            return True
        if path.startswith("encoder.layers."):
            return int(path.split(".")[2]) < self.layers_read(text)
        return path.startswith("embeddings.") or self.reads_outside_layers(text)

    def layers_read(self, text: TextEncoder) -> int:
        """Number of layers of ``text`` up to the hidden state that is used."""
        return text.depth - self.clip_skip + 1

    def reads_outside_layers(self, text: TextEncoder) -> bool:
        """True if images depend on the final norm and projection of ``text``."""
        return True


class StableDiffusionXL(StableDiffusion):
    """SDXL, with two text encoders and size conditioning.

    The prompt embedding joins their hidden states before the last layer, without final norm. The second encoder's
    pooled projection and the image size are added conditioning."""

    def text_encoders(self, pipeline: Any) -> list[TextEncoder]:
        pairs = [
            (
                f"text_encoder{s}",
                getattr(pipeline, f"tokenizer{s}"),
                getattr(pipeline, f"text_encoder{s}"),
            )
            for s in ("", "_2")
        ]
        return [TextEncoder(*pair) for pair in pairs]

    def prompt_embedding(self, k: int, output: Any) -> Tensor:
        return output.hidden_states[-self.clip_skip - 1]

    def pooled_embedding(self, outputs: Sequence[Any]) -> Tensor:
        return outputs[-1].text_embeds.float()

    def time_ids(
        self, height: int, width: int, *, original: tuple[int, int] | None = None, crop: tuple[int, int] = (0, 0)
    ) -> Tensor:
        return torch.tensor([*(original or (height, width)), *crop, height, width], dtype=torch.float32)

    def added_conditioning(self, conditioning: Conditioning) -> dict[str, Tensor | None]:
        return {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}

    def layers_read(self, text: TextEncoder) -> int:
        return text.depth if text is self.text[-1] else text.depth - self.clip_skip

    def reads_outside_layers(self, text: TextEncoder) -> bool:
        return text is self.text[-1]
