"""One interface for latent diffusion models. Methods, edits and samplers use this class; a family overrides it.

The interface hides the differences. `DiffusionModel.predict_noise` always returns eps, for every prediction type.
Layers are selected by role. `Conditioning` holds all conditioning of the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from mu.core.compute import full
from mu.core.errors import ConfigError, DataError, ModelError, quoted, titled
from mu.models.diffusion.conditioning import Conditioning
from mu.models.diffusion.noise import PREDICTIONS, NoiseLevel
from mu.models.diffusion.text import TextEncoder
from mu.models.tokenizers import check_concepts

Layer = nn.Linear | nn.Conv2d
Role = Literal["text-keys", "text-values", "cross-attention", "transformer"]
"""``text-keys``, ``text-values``: layers whose only input is the prompt embedding. ``cross-attention``: all layers of
the attentions that read it. ``transformer``: every linear and convolution layer inside the transformer blocks."""


ENCODED_AT_ONCE = 256
"""Prompts: those of a batch of images, but not all that a search retains."""

MOST_STEPS = 10_000
"""Denoising steps; some schedulers make a list of any number of them."""


def check_steps(steps: Any) -> None:
    """Raise `ConfigError` unless ``steps`` is a number of denoising steps that schedulers are asked for."""
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"the number of denoising steps is from 1 to {MOST_STEPS}, not {str(steps)[:40]}")


def _not_compiled() -> tuple[type[BaseException], ...]:
    """What torch raises if it cannot compile; versions before 2.6 have the first alone."""
    more = getattr(torch._inductor.exc, "InductorError", None)
    return (torch._dynamo.exc.TorchDynamoException, *([more] if more else []))


def _place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move what is elsewhere, or in another precision. diffusers looks for long at a module that is there already."""
    tensors = [*module.parameters(), *module.buffers()]
    if any(t.device != device or (t.is_floating_point() and t.dtype != dtype) for t in tensors):
        module.to(device, dtype)


def _take_any_dtype(vae: nn.Module) -> None:
    """Let the autoencoder, in float32, take what the stock pipeline gives it: latents in the backbone's precision."""
    for name in ("encoder", "quant_conv", "post_quant_conv", "decoder"):
        module = getattr(vae, name, None)
        if isinstance(module, nn.Module):
            module.register_forward_pre_hook(_to_own_dtype)


def _to_own_dtype(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in args)


class DiffusionModel(ABC):
    """A loaded diffusers pipeline behind the common interface.

    ``components`` are the modules that an edit may change: the backbone (``unet``, ...), ``text_encoder``,
    ``text_encoder_2``, ``vae``. The weights are frozen and in eval mode. With ``precision`` float16 or bfloat16,
    autocast runs backbone and text encoders in it. The autoencoder stays in float32 (SDXL's overflows otherwise).

    ``placed=False`` keeps the device and precision of the pipeline's modules, for a pipeline that the user passed in.
    """

    backbone_name: ClassVar[str]
    """Name of the backbone in the pipeline, and the first part of its parameter names."""

    def __init__(
        self, pipeline: Any, name: str, device: torch.device | str = "cpu", precision: torch.dtype = torch.float32,
        clip_skip: int = 1, *, placed: bool = True,
    ):  # fmt: skip
        self.pipeline, self.name, self.clip_skip = pipeline, name, clip_skip
        self.device, self.precision = torch.device(device), precision
        self.backbone, self.vae = getattr(pipeline, self.backbone_name), pipeline.vae
        self._forward: Callable[..., Any] = self.backbone
        self.compiles = False
        """Whether images are made through ``torch.compile``. They differ from others by rounding."""
        self.text = self.text_encoders(pipeline)
        self.components: dict[str, nn.Module] = {
            self.backbone_name: self.backbone,
            "vae": self.vae,
            **{text.component: text.module for text in self.text},
        }
        for part, module in self.components.items():
            module.requires_grad_(False).eval()
            if placed:
                _place(module, self.device, torch.float32 if part == "vae" else precision)
        if placed and precision != torch.float32:
            _take_any_dtype(self.vae)
        deepest = min(text.depth for text in self.text)
        if not 1 <= clip_skip <= deepest:
            raise ConfigError(f"clip_skip must lie in 1..{deepest} for {titled(name)}, got {clip_skip}")
        self.source: Path | None = None
        """The folder or file that the model was loaded from, if it was loaded by name."""
        self.given: Conditioning | None = None
        """Conditioning of the current evaluation; None while other code runs the backbone."""
        training = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.alphas_cumprod: Tensor = training.alphas_cumprod.to(self.device)
        self.prediction_type: str = pipeline.scheduler.config.get("prediction_type", "epsilon")
        self.zeros_without_negative = bool(pipeline.config.get("force_zeros_for_empty_prompt"))
        """Whether zeros replace the prompt embedding if no negative prompt is given (most SDXL models)."""

    # -- what a family defines -----------------------------------------------------------------------------------------

    @abstractmethod
    def text_encoders(self, pipeline: Any) -> list[TextEncoder]:
        """The text encoders, in the order in which their embeddings are joined."""

    @abstractmethod
    def prompt_embedding(self, k: int, output: Any) -> Tensor:
        """Prompt embedding (b, n, width) for the backbone, from the ``output`` of text encoder ``k``."""

    @abstractmethod
    def layers(self, role: Role) -> dict[str, Layer]:
        """Layers of the backbone in a `Role`, by the full name of their weight, in model order."""

    @abstractmethod
    def cross_attentions(self) -> list[Any]:
        """Attention modules (``to_q``, ``to_k``, ``heads``) with keys of the prompt embedding, in model order."""

    @abstractmethod
    def evaluate(self, x: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
        """Output (b, c, h, w) of the backbone for latents ``x``. Only this method runs the backbone."""

    def pooled_embedding(self, outputs: Sequence[Any]) -> Tensor | None:
        """Pooled embedding (b, width) from the text encoders' ``outputs``; None if the family has none."""
        return None

    def time_ids(
        self, height: int, width: int, *, original: tuple[int, int] | None = None, crop: tuple[int, int] = (0, 0)
    ) -> Tensor | None:
        """Size conditioning (6,) in pixels: original size, crop corner (top, left), target size. None if not used."""
        return None

    def conditioning_of(self, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
        """The prompt embeddings (b, n, width) in a call of the backbone with ``args`` and ``options``."""
        return options["encoder_hidden_states"]

    def reads(self, parameter: str) -> bool:
        """True if images depend on ``parameter`` (full name)."""
        component, _, path = parameter.partition(".")
        try:
            self.components[component].get_parameter(path)
        except (KeyError, AttributeError):
            return False
        return True

    # -- shapes --------------------------------------------------------------------------------------------------------

    @property
    def loading(self) -> dict[str, Any]:
        """Options of `mu.models.load` that load this model again with the same outputs."""
        return {"clip_skip": self.clip_skip, "prediction_type": self.prediction_type}

    @property
    def latent_channels(self) -> int:
        return int(self.backbone.config.in_channels)

    @property
    def text_width(self) -> int:
        """Width of the prompt embeddings."""
        width = self.backbone.config.cross_attention_dim
        return int(width if isinstance(width, int) else width[0])

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_size(self) -> int:
        """Height and width, in pixels, that the backbone was trained on."""
        return int(self.backbone.config.sample_size) * self.pixels_per_latent

    def parameters(self, role: Role) -> dict[str, nn.Parameter]:
        """All parameters of the layers in a `Role`, by full name in model order. `ModelError` if it has no layers."""
        if role not in get_args(Role):
            raise ModelError(f"unknown role {quoted(role)}; choose {', '.join(get_args(Role))}")
        found: dict[str, nn.Parameter] = {}
        for name, layer in self.layers(role).items():
            path = name.removesuffix("weight")
            found |= {f"{path}{part}": parameter for part, parameter in layer.named_parameters(recurse=False)}
        if not found:
            raise ModelError(f"{titled(self.name)} has no {role} layers")
        return found

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Run the backbone through ``torch.compile`` inside the block. The first calls take minutes.

        What was compiled before is forgotten: torch would not see that an edit's hooks came or went since. Put edits on
        before. Raises `ConfigError` if nothing can be compiled here.
        """
        torch._dynamo.reset()  # type: ignore[no-untyped-call]
        self._forward = torch.compile(self.backbone)
        try:
            yield
        except _not_compiled() as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise ConfigError(
                f"torch.compile fails with {titled(self.name)} ({reason}): leave it out, or install a C++ compiler"
            ) from None
        finally:
            self._forward = self.backbone

    def sampling(self) -> AbstractContextManager[None]:
        """What images are made in: `compiled` if this model `compiles`."""
        return self.compiled() if self.compiles else nullcontext()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    # -- text ----------------------------------------------------------------------------------------------------------

    def tokens(self, prompts: Sequence[str]) -> list[Tensor]:
        """Token ids (b, n) for each text encoder; see `TextEncoder.tokens`."""
        return [text.tokens(prompts) for text in self.text]

    def check_concepts(self, concepts: Iterable[str]) -> None:
        """Raise `ConfigError` for a concept that is too long for one of the text encoders."""
        for text in self.text:
            check_concepts(concepts, text.tokenizer, text.length, self.name)

    def token_embeddings(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings (b, n, width) of ``tokens`` for each text encoder; an attack may change and pass them on."""
        return [text.embedding(ids) for text, ids in zip(self.text, tokens, strict=True)]

    def encode_embeddings(self, tokens: Sequence[Tensor], embeddings: Sequence[Tensor] | None = None) -> Conditioning:
        """Prompt embeddings of ``tokens``, the output of `tokens`; with gradients if they are enabled.

        ``embeddings`` (see `token_embeddings`) replace those of the tokens: soft prompts. Positions are still added,
        and ``tokens`` still mark the end of the prompt. Soft prompts have None for `Conditioning.tokens`.
        """
        soft: Sequence[Tensor | None] = embeddings or [None] * len(self.text)
        outputs = []
        with self.autocast():
            for text, ids, given in zip(self.text, tokens, soft, strict=True):
                with text.reading(given):
                    outputs.append(text.module(ids, output_hidden_states=True))
            states = [self.prompt_embedding(k, output) for k, output in enumerate(outputs)]
            pooled = self.pooled_embedding(outputs)
        found = Conditioning(full(torch.cat(states, dim=-1)), pooled, tokens=None if embeddings else tokens[0])
        return found.at(self.time_ids(self.default_size, self.default_size))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompt embeddings of ``prompts``: all padded positions, without an attention mask.

        The text encoders read at most `ENCODED_AT_ONCE` prompts in one pass.
        """
        parts = [prompts[k : k + ENCODED_AT_ONCE] for k in range(0, max(len(prompts), 1), ENCODED_AT_ONCE)]
        found = [self.encode_embeddings(self.tokens(part)) for part in parts]
        return found[0] if len(found) == 1 else Conditioning.cat(found)

    def last_token(self, prompt: str) -> int:
        """The position before the end token; for an empty prompt, the position of the start token."""
        encoder = self.text[0]
        return encoder.tokens([prompt])[0].tolist().index(encoder.end) - 1

    @torch.no_grad()
    def last_rows(self, prompts: Sequence[str], batch: int = 64) -> Tensor:
        """The prompt embedding at each prompt's `last_token`, (b, width), in float64 on the CPU.

        A causal text encoder reads no padding here, which makes a short prompt several times as fast.
        """
        ids, found = self.tokens(prompts), []
        last = torch.tensor([each.index(self.text[0].end) - 1 for each in ids[0].tolist()])
        longest = int(last.max()) + 2 if all(text.causal for text in self.text) and len(prompts) else None
        order = last.argsort(stable=True)
        for rows in order.split(batch):
            there = rows.to(self.device)
            cut = None if longest is None else int(last[rows].max()) + 2
            sequence = self.encode_embeddings([each[there, :cut] for each in ids]).sequence
            found.append(sequence[range(len(rows)), last[rows].tolist()].cpu().double())
        return torch.cat(found)[order.argsort()] if found else torch.zeros(0, 0, dtype=torch.float64)

    def fits(self, prompt: str) -> bool:
        """Whether the text encoders read ``prompt`` whole."""
        return all(text.fits(prompt) for text in self.text)

    def unconditional(self, negative: str | None = None) -> Conditioning:
        """One row for the unconditional half of guidance; None is no negative prompt, which differs from ``""``."""
        found = self.encode([negative or ""])
        if negative is not None or not self.zeros_without_negative:
            return found
        pooled = None if found.pooled is None else torch.zeros_like(found.pooled)
        return replace(found, sequence=torch.zeros_like(found.sequence), pooled=pooled, tokens=None)

    # -- noise ---------------------------------------------------------------------------------------------------------

    def level(self, t: Tensor | float) -> NoiseLevel:
        """Noise level at timestep ``t``, a number or (b,).

        Between two whole timesteps sigma / alpha is linear, as in the schedulers of diffusers with such timesteps.
        """
        t = torch.as_tensor(t, device=self.device)
        if t.is_floating_point() and bool((t != t.floor()).any()):
            ratio = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
            below = t.long().clamp(max=len(ratio) - 2)
            alpha_bar = 1 / (1 + torch.lerp(ratio[below], ratio[below + 1], (t - below).to(ratio)) ** 2)
        else:
            alpha_bar = self.alphas_cumprod[t.long()]
        alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
        return NoiseLevel(t, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())

    def predict(self, x: Tensor, level: NoiseLevel | Tensor | int, conditioning: Conditioning) -> Tensor:
        """Output (b, c, h, w) of the backbone in float32, in its own prediction type, for latents ``x`` at ``level``.

        Hooks of the backbone (gates of edits) find ``conditioning`` in `given`.
        """
        at = level if isinstance(level, NoiseLevel) else self.level(level)
        before, self.given = self.given, conditioning
        try:
            with self.autocast():
                return full(self.evaluate(x, at, conditioning))
        finally:
            self.given = before

    def predict_noise(self, x: Tensor, level: NoiseLevel | Tensor | int, conditioning: Conditioning) -> Tensor:
        """eps (b, c, h, w) in float32 for unit-variance latents ``x`` at ``level``, a noise level or timestep (b,)."""
        at = level if isinstance(level, NoiseLevel) else self.level(level)
        return PREDICTIONS[self.prediction_type].noise(self.predict(x, at, conditioning), x, at)

    def native_weight(self, t: int) -> float:
        """Weight at ``t`` that turns a squared eps error into one in the backbone's own prediction type.

        0 in pure noise, where eps is the latents whatever the backbone says.
        """
        level = self.level(t)
        slope = PREDICTIONS[self.prediction_type].slope(float(level.alpha), float(level.sigma))
        return slope**-2 if slope else 0.0

    def new_scheduler(self, steps: int) -> Any:
        """A new scheduler of the pipeline's own class, with ``steps`` steps set. It takes the backbone's output."""
        config = self.pipeline.scheduler.config
        scheduler = type(self.pipeline.scheduler).from_config(config, prediction_type=self.prediction_type)
        ends_in_noise = float(getattr(scheduler, "alphas_cumprod", self.alphas_cumprod)[-1]) == 0
        if self.prediction_type == "epsilon" and (ends_in_noise or config.get("rescale_betas_zero_snr")):
            raise ModelError(
                f"the scheduler of {titled(self.name)} ends in pure noise (rescale_betas_zero_snr), where eps has no "
                "information: set rescale_betas_zero_snr to false in its scheduler_config.json"
            )
        check_steps(steps)
        try:
            scheduler.set_timesteps(steps, device=self.device)
        except ValueError as error:  # more steps than in training
            raise ConfigError(f"{steps} denoising steps are not possible with {titled(self.name)}: {error}") from None
        if float(scheduler.timesteps.max()) > len(self.alphas_cumprod) - 1:
            raise ConfigError(
                f"the scheduler of {titled(self.name)} with {steps} denoising steps begins past its last timestep "
                "(steps_offset): pass fewer steps"
            )
        if float(scheduler.timesteps.min()) < 0:
            raise ConfigError(
                f"the scheduler of {titled(self.name)} with {steps} denoising steps ends before its first timestep "
                "(timestep_spacing): pass fewer steps"
            )
        return scheduler

    # -- images --------------------------------------------------------------------------------------------------------

    def decode(self, latents: Tensor, *, gradients: bool = False) -> Tensor:
        """Decode latents (b, c, h, w) to images (b, 3, H, W) in 0..1; differentiable with ``gradients``.

        Raises `DataError` for an image that is not finite."""
        mean, scale = self._latent_statistics(latents)
        with torch.set_grad_enabled(gradients), self._upcast_vae() as dtype:
            pixels = self.vae.decode((latents / scale + mean).to(dtype)).sample.float()
        if not pixels.isfinite().all():
            raise DataError(f"an image is not finite after the autoencoder in {str(dtype)[6:]}: load it in float32")
        return (pixels / 2 + 0.5).clamp(0, 1)

    def encode_images(
        self, images: Tensor, generator: torch.Generator | None = None, *, gradients: bool = False
    ) -> Tensor:
        """Encode images (b, 3, H, W) in 0..1 to latents (b, c, h, w); without ``generator``, the posterior mean."""
        with torch.set_grad_enabled(gradients), self._upcast_vae() as dtype:
            posterior = self.vae.encode(images.to(self.device, dtype) * 2 - 1).latent_dist
            latents = posterior.mean if generator is None else posterior.sample(generator)
            mean, scale = self._latent_statistics(latents)
            return (latents - mean) * scale

    encode_pictures = encode_images
    """The name before 0.1.0."""

    @contextmanager
    def _upcast_vae(self) -> Iterator[torch.dtype]:
        """Run the autoencoder in float32 inside the block if it is in float16 and its config says ``force_upcast``: it
        overflows there. Gives the precision that it runs in. The stock pipeline of SDXL does the same."""
        half = self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast", False)
        if half:
            self.vae.to(torch.float32)
        try:
            yield self.vae.dtype
        finally:
            if half:
                self.vae.to(torch.float16)

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(mean, scale): latents are (the autoencoder's own - mean) * scale; by channel if its config has them so."""
        config = self.vae.config
        scale, mean, std = config.scaling_factor, config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return config.get("shift_factor") or 0.0, scale
        mean, std = (torch.as_tensor(each).to(like).reshape(1, -1, 1, 1) for each in (mean, std))
        return mean, scale / std
