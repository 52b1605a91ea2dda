"""One face for the latent diffusion models of the Stable Diffusion family: SD 1.x, SD 2.x, SDXL and those of their form.

Everything that differs between them is converted here: `DiffusionModel.predict_noise` always returns eps, whatever the
UNet was trained to predict, and `Conditioning` carries whatever the UNet is conditioned on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, LMSDiscreteScheduler, Transformer2DModel
from torch import Tensor, nn

from mu.core.errors import ConfigError, ModelError, nearest

log = logging.getLogger("mu")


@dataclass(frozen=True)
class Conditioning:
    """What a batch of UNet evaluations is conditioned on.

    ``sequence`` (b, tokens, width); for SDXL also ``pooled`` (b, width) and ``time_ids`` (b, 6).
    """

    sequence: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        parts = (getattr(self, field.name) for field in fields(self))
        changed: list[Any] = [None if part is None else change(part) for part in parts]
        return Conditioning(*changed)

    def __getitem__(self, rows: Any) -> Conditioning:
        return self._each(lambda part: part[rows])

    def repeat(self, times: int) -> Conditioning:
        """(a, b) -> (a, b, a, b, ...)."""
        return self._each(lambda part: part.repeat(times, *[1] * (part.dim() - 1)))

    def at(self, time_ids: Tensor) -> Conditioning:
        """The same with ``time_ids`` (6,) where the model takes them."""
        if self.pooled is None:
            return self
        rows = time_ids.to(self.pooled.device, self.pooled.dtype).expand(len(self), -1)
        return Conditioning(self.sequence, self.pooled, rows)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        columns = ([getattr(part, field.name) for part in parts] for field in fields(Conditioning))
        joined: list[Any] = [None if any(p is None for p in column) else torch.cat(column) for column in columns]
        return Conditioning(*joined)


class DiffusionModel:
    """A loaded diffusers pipeline behind one face.

    ``components`` name what an edit may touch: ``unet``, ``text_encoder``, ``text_encoder_2``, ``vae``. The weights are
    frozen and in eval mode. With ``precision`` float16 or bfloat16 the UNet and the text encoders compute in it by
    autocast; the autoencoder stays in float32 (SDXL's overflows in half precision).
    """

    def __init__(self, pipeline: Any, name: str, device: torch.device | str = "cpu", precision: torch.dtype = torch.float32, clip_skip: int = 1):  # fmt: skip
        self.name, self.device, self.precision, self.clip_skip = name, torch.device(device), precision, clip_skip
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self._forward: Callable[..., Any] = self.unet
        towers = [(getattr(pipeline, f"tokenizer{s}", None), getattr(pipeline, f"text_encoder{s}", None)) for s in ("", "_2")]
        self.towers: list[tuple[Any, Any]] = [(t, e) for t, e in towers if e is not None]
        self.components: dict[str, nn.Module] = {"unet": self.unet, "vae": self.vae}
        for suffix, (_, encoder) in zip(("", "_2") if len(self.towers) > 1 else ("",), self.towers, strict=True):
            self.components[f"text_encoder{suffix}"] = encoder
        for part, module in self.components.items():
            module.requires_grad_(False).eval().to(self.device, torch.float32 if part == "vae" else precision)
        deepest = min(int(encoder.config.num_hidden_layers) for _, encoder in self.towers)
        if not 1 <= clip_skip <= deepest:
            raise ConfigError(f"clip_skip must lie in 1..{deepest} for {name!r}, got {clip_skip}")
        self.prompt_listeners: list[Callable[[list[str]], None]] = []
        """Called with the prompts of each batch before it is generated; gated edits listen here."""
        self._told_truncated: set[str] = set()
        training = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.alphas_cumprod: Tensor = training.alphas_cumprod.to(self.device)
        self.prediction_type: str = pipeline.scheduler.config.get("prediction_type", "epsilon")

    @property
    def loading(self) -> dict[str, Any]:
        """What `mu.models.load` is to be told beside the name to give this model again: its numbers depend on it."""
        return {"clip_skip": self.clip_skip, "prediction_type": self.prediction_type}

    # -- shapes ---------------------------------------------------------------------------------------------------------

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_size(self) -> int:
        """Height and width in pixels that the UNet was trained for."""
        return int(self.unet.config.sample_size) * self.pixels_per_latent

    @property
    def takes_time_ids(self) -> bool:
        return self.unet.config.get("addition_embed_type") == "text_time"

    def transformer_layers(self) -> dict[str, nn.Linear | nn.Conv2d]:
        """Every linear and convolution layer inside the UNet's transformers, by the full name of its weight."""
        layers: dict[str, nn.Linear | nn.Conv2d] = {}
        for path, block in self.unet.named_modules():
            if isinstance(block, Transformer2DModel):
                for inner, layer in block.named_modules():
                    if isinstance(layer, (nn.Linear, nn.Conv2d)):
                        layers[f"unet.{path}.{inner}.weight"] = layer
        return layers

    def reads(self, parameter: str) -> bool:
        """Whether pictures depend on ``parameter`` (full name): text layers behind the hidden state that is used do not count."""
        component, _, path = parameter.partition(".")
        try:
            self.components[component].get_parameter(path)
        except (KeyError, AttributeError):
            return False
        if not component.startswith("text_encoder"):
            return True
        several = len(self.towers) > 1  # they give the hidden state before the last, without the final norm
        depth = int(self.components[component].config.num_hidden_layers) - self.clip_skip + (0 if several else 1)  # type: ignore[union-attr,arg-type]
        if path.startswith("encoder.layers."):
            return int(path.split(".")[2]) < depth
        return path.startswith("embeddings.") or component == "text_encoder_2" or not several

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """The UNet runs through ``torch.compile`` inside the block: the first calls take minutes, later ones less time."""
        self._forward = torch.compile(self.unet)
        try:
            yield
        finally:
            self._forward = self.unet

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    # -- text -----------------------------------------------------------------------------------------------------------

    def tokens(self, prompts: Sequence[str], tower: int = 0) -> Tensor:
        """Token ids (b, length), padded; a prompt that is too long is cut, with one warning that says what was cut."""
        tokenizer = self.towers[tower][0]
        limit = tokenizer.model_max_length
        for prompt in prompts:
            if prompt in self._told_truncated:
                continue
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > limit:
                self._told_truncated.add(prompt)
                cut = tokenizer.decode(ids[limit - 1 : -1])
                log.warning("the text encoder takes %d tokens; cut from the prompt: %r", limit - 2, cut)
        options = {"padding": "max_length", "max_length": limit, "truncation": True, "return_tensors": "pt"}
        return tokenizer(list(prompts), **options).input_ids.to(self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Embeddings of ``prompts``: all padded positions, no attention mask.

        One text encoder: the hidden state ``clip_skip`` layers from the end (1 is the last) after the final norm. Two
        (SDXL): the one before that of both, side by side and without norm, and the second encoder's pooled projection.
        """
        states, pooled = [], None
        with self.autocast():
            for k, (_, encoder) in enumerate(self.towers):
                out = encoder(self.tokens(prompts, k), output_hidden_states=True)
                if len(self.towers) > 1:
                    states.append(out.hidden_states[-self.clip_skip - 1])
                    pooled = out.text_embeds.float() if k == 1 else None
                else:
                    norm = getattr(encoder, "text_model", encoder).final_layer_norm
                    states.append(out.last_hidden_state if self.clip_skip == 1 else norm(out.hidden_states[-self.clip_skip]))
        conditioning = Conditioning(torch.cat(states, dim=-1).float(), pooled)
        return conditioning.at(self.time_ids(self.default_size, self.default_size))

    def time_ids(
        self, height: int, width: int, *, original: tuple[int, int] | None = None, crop: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """SDXL's size conditioning (6,): original size, crop corner (top, left), target size; pixels."""
        return torch.tensor([*(original or (height, width)), *crop, height, width], dtype=torch.float32)

    # -- noise ----------------------------------------------------------------------------------------------------------

    def predict_noise(self, latents: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
        """eps (b, c, h, w) in float32 for ``latents`` of unit-variance diffusion at timestep ``t`` (number or (b,))."""
        added = None
        if self.takes_time_ids:
            added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        with self.autocast():
            out = self._forward(latents, t, conditioning.sequence, added_cond_kwargs=added).sample.float()
        if self.prediction_type == "epsilon":
            return out
        alpha_bar = self.alphas_cumprod[torch.as_tensor(t, device=self.device).long()].reshape(-1, 1, 1, 1)
        if self.prediction_type == "v_prediction":
            return alpha_bar.sqrt() * out + (1 - alpha_bar).sqrt() * latents
        return (latents - alpha_bar.sqrt() * out) / (1 - alpha_bar).sqrt()

    def native_weight(self, t: int) -> float:
        """The squared-error weight at ``t`` that turns an eps loss into one on what the UNet itself predicts.

        eps = alpha v + sigma x at fixed x, so differences obey d_eps = alpha d_v: the weight is 1 / alpha^2 for v.
        """
        alpha_bar = float(self.alphas_cumprod[t])
        return {"epsilon": 1.0, "v_prediction": 1 / alpha_bar}.get(self.prediction_type, (1 - alpha_bar) / alpha_bar)

    def new_scheduler(self, steps: int) -> Any:
        """A fresh scheduler of the pipeline's own kind, told that it is given eps, with ``steps`` steps set."""
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config, prediction_type="epsilon")
        if float(getattr(scheduler, "alphas_cumprod", self.alphas_cumprod)[-1]) == 0:
            raise ModelError(
                f"the scheduler of {self.name!r} ends in pure noise (rescale_betas_zero_snr), where a prediction of the noise says "
                f"nothing: set rescale_betas_zero_snr to false in its scheduler_config.json"
            )
        try:
            scheduler.set_timesteps(steps, device=self.device)
        except ValueError as error:  # more steps than the model was trained on
            raise ConfigError(f"{steps} denoising steps are not possible with {self.name!r}: {error}") from None
        return scheduler

    # -- pictures -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(b, c, h, w) -> pictures (b, 3, H, W) in 0..1."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + shift
        return (self.vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pictures (b, 3, H, W) in 0..1 -> latents (b, c, h, w); the posterior's mean without a ``generator``."""
        posterior = self.vae.encode(pictures.to(self.device, self.vae.dtype) * 2 - 1).latent_dist
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return (latents - (getattr(self.vae.config, "shift_factor", None) or 0)) * self.vae.config.scaling_factor

    @contextmanager
    def listening(self, listener: Callable[[list[str]], None]) -> Iterator[None]:
        """``listener(prompts)`` is called before each generated batch while the block runs."""
        self.prompt_listeners.append(listener)
        try:
            yield
        finally:
            self.prompt_listeners.remove(listener)


TRAINING_SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "lms": (LMSDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
}


def training_scheduler(name: str) -> Any:
    """A scheduler built from the constants of Stable Diffusion and not from the checkpoint (specification of SPM, 2.1).

    For DDIM: leading spacing, offset 0, final alpha 1; the 30-step grid is 957, 924, ..., 0.
    """
    if name not in TRAINING_SCHEDULERS:
        raise ConfigError(f"unknown noise scheduler {name!r}.{nearest(name, TRAINING_SCHEDULERS)}")
    kind, options = TRAINING_SCHEDULERS[name]
    try:
        return kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, **options)
    except ImportError:  # diffusers integrates LMS's coefficients with scipy
        raise ConfigError(f"noise scheduler {name!r} needs the package scipy: pip install scipy, or choose ddim") from None


def learning_rate_schedule(
    name: str, optimizer: torch.optim.Optimizer, iterations: int, *, warmup: int = 0, cycles: int = 1, power: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.lr_scheduler.LRScheduler:  # fmt: skip
    """Any schedule of diffusers by name, ``one_cycle`` (torch's), or ``adafactor:<lr>`` (transformers').

    ``cosine_with_restarts`` at step i >= W = ``warmup``: lr * max(0, (1 + cos(pi * frac(cycles (i - W) / (T - W)))) / 2).
    """
    if name == "one_cycle":
        rate, share = optimizer.param_groups[0]["lr"], min(max(warmup, 1) / iterations, 0.9)
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=iterations + 1, pct_start=share, **(options or {})
        )
    if name.startswith("adafactor:"):
        from transformers.optimization import AdafactorSchedule

        try:
            return AdafactorSchedule(optimizer, float(name.split(":")[1]))
        except ValueError:
            raise ConfigError(f"learning rate schedule {name!r} is not of the form adafactor:<lr>") from None
    from diffusers.optimization import SchedulerType, get_scheduler

    known = [kind.value for kind in SchedulerType]
    if name not in known:
        raise ConfigError(f"unknown learning rate schedule {name!r}.{nearest(name, [*known, 'one_cycle'])}")
    named = {"constant": {}, "constant_with_warmup": {"num_warmup_steps": warmup}}
    common = {"num_warmup_steps": warmup, "num_training_steps": iterations, "num_cycles": cycles, "power": power}
    try:
        return get_scheduler(name, optimizer, **named.get(name, common), **(options or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.lr_scheduler_args do not fit {name!r}: {error}") from None
