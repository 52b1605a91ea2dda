"""The objective of SPM (Lyu et al., CVPR 2024, Eq. 4 and 8) and its optimisation."""

from __future__ import annotations

import ast
import importlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.algorithms.semipermeable_membrane.configs import SemipermeableMembraneConfig, TrainConfig
from mu.algorithms.semipermeable_membrane.data_handler import SemipermeableMembraneDataHandler, Task
from mu.algorithms.semipermeable_membrane.model import SemipermeableMembraneModel
from mu.core.errors import ConfigError, nearest, quoted
from mu.core.loop import Log, train
from mu.diffusion.denoising import denoise, initial_noise
from mu.edits.membrane import Membrane
from mu.models.diffusion import Conditioning
from mu.models.diffusion.schedulers import learning_rate_schedule, training_scheduler
from mu.training.calibration import Calibration
from mu.training.tuning import Tensors
from mu.training.watch import Watch, relative_rate

log = logging.getLogger("mu")


class SemipermeableMembraneTrainer:
    """Trains the adapters. A step denoises for a random number of steps with them on, then compares predictions.

    Model evaluations per step at batch B, S anchor rows and k denoising steps, with guidance and no reused latents:
    ``k + 2`` calls and ``2Bk + 3B + 2S`` samples, ``B + S`` of them with gradients. The released code spends
    ``2Bk + 6B + 4S``: it also computes unconditional halves and multiplies them by zero (guidance 1).

    The unconditional half is the encoded prompt ``unconditional`` (empty by default), as in the released code for SDXL.
    SDXL's images without a negative prompt are guided against zeros instead (``force_zeros_for_empty_prompt``).
    """

    def __init__(
        self,
        config: SemipermeableMembraneConfig,
        model: SemipermeableMembraneModel,
        data: SemipermeableMembraneDataHandler,
        calibrations: Sequence[Calibration] = (),
    ):
        self.config, self.model, self.data, self.calibrations = config, model, data, calibrations
        self.curve: Sequence[Mapping[str, float]] = ()
        """The probe's readings during a calibrated search."""
        self.walker = _Walker(config.train, model, data)

    def train(
        self,
        generator: torch.Generator,
        *,
        checkpoint: Path | None = None,
        log: Log | None = None,
        snapshot: Callable[[int], None] | None = None,
    ) -> None:
        """Optimise the adapters in place. ``snapshot(i)`` is called every ``save.per_steps`` steps, except the last."""
        settings = self.config.train
        weights = self.model.edit.trainable()
        if self.calibrations:
            settings = settings.model_copy(update={"lr": relative_rate(weights, self.config.calibrate.rate)})
        optimizer = make_optimizer(settings, weights)
        watch = Watch(self.calibrations, optimizer, weights, self.model.as_used) if self.calibrations else None
        schedule = None if watch else self._schedule(optimizer)

        def after(i: int) -> None:
            if snapshot and i and i % self.config.save.per_steps == 0 and i < settings.iterations - 1:
                snapshot(i)

        base = self.model.base
        scaler = torch.amp.GradScaler(base.device.type, enabled=base.precision == torch.float16)
        with self.model.trainable() as membrane, base.compiled() if settings.compile else nullcontext():
            train(
                lambda i: self.step(membrane, generator),
                optimizer,
                settings.iterations,
                generator=generator,
                draws=settings.drawn,
                schedule=schedule,
                state={"factors": Tensors(weights), "walker": self.walker, **({"watch": watch} if watch else {})},
                stop=watch,
                scaler=scaler,
                max_grad_norm=settings.max_grad_norm,
                after_step=after,
                checkpoint=checkpoint,
                checkpoint_every=self.config.save.per_steps,
                title="SPM",
                log=log,
            )
            if watch:
                watch.keep_best()
                self.curve = watch.curve

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        settings = self.config.train
        return learning_rate_schedule(
            settings.lr_scheduler,
            optimizer,
            settings.iterations,
            warmup=warmup_steps(settings),
            cycles=settings.lr_scheduler_num_cycles,
            power=settings.lr_scheduler_power,
            options=_options(settings.lr_scheduler_args),
        )

    def step(self, membrane: Membrane, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses of one step, with gradients to the adapters."""
        task = self.data.draw(generator)
        x, t, ids = self.walker.latents(task, generator)
        entry, base, b = task.entry, self.model.base, len(x)
        anchors = None
        if entry.anchored:
            anchors = task.anchors.draw(generator, task.unconditional).at(ids)
        n = 0 if anchors is None else len(anchors)
        x_all = torch.cat([x, x.repeat(-(-n // b), 1, 1, 1)[:n]])

        def rows(*concepts: Conditioning) -> Conditioning:
            parts = [Conditioning.cat([c.at(ids)] * b) for c in concepts]
            return Conditioning.cat(parts + ([anchors] if anchors is not None else []))

        with torch.no_grad(), membrane.off():
            off = base.predict_noise(torch.cat([x, x_all]), t, rows(task.positive, task.neutral))
        e_pos, e_neu, a_off = off.split([b, b, n])
        e_tar, a_on = base.predict_noise(x_all, t, rows(task.target)).split([b, n])

        eta, lambda_ = entry.guidance_scale, entry.la_strength
        weight = base.native_weight(int(t))  # not in the paper: 1 for eps models; else makes it the error of the output
        # Eq. 4: c_sur is the neutral prompt; c_tar in the bracket the positive one (default: the target).
        L_erase = weight * F.mse_loss(e_tar, e_neu - eta * (e_pos - e_neu))
        if anchors is None:
            return {"loss": L_erase, "erase": L_erase}
        L_anchor = weight * F.mse_loss(a_on, a_off)
        return {"loss": L_erase + lambda_ * L_anchor, "erase": L_erase, "anchoring": L_anchor}  # Eq. 8


Walked = tuple[Tensor, int, Tensor | None]
"""x_k, k, and SDXL's size conditioning."""


class _Walker:
    """Makes partially denoised latents x_k of the target, with the adapters on, and the timestep for the UNet."""

    def __init__(
        self, settings: TrainConfig, model: SemipermeableMembraneModel, data: SemipermeableMembraneDataHandler
    ):
        self.settings, self.model, self.data = settings, model, data
        self.kept: dict[int, list[Walked]] = {}
        """Separate latents for each entry of the prompt settings: one target's latents cannot serve another."""

    def latents(self, task: Task, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """UNet input x (b, c, h, w), the timestep, and SDXL's size conditioning."""
        many, kept = self.settings.timesteps_per_trajectory, self.kept.get(task.number, [])
        pool = self.settings.latent_pool
        if pool and len(kept) >= pool and torch.rand(1, generator=generator) < 0.75:
            x, k, ids = kept[int(torch.randint(len(kept), (1,), generator=generator))]
        elif many > 1 and kept and not pool:
            (x, k, ids), *kept = kept
        else:
            states = self._walk(task, generator, 1 if pool else many)
            x, k, ids = states[0]
            kept = [*kept, states[0]][-pool:] if pool else states[1:]
        self.kept[task.number] = kept
        return (*self._unet_input(x, k), ids)

    @torch.no_grad()
    def _walk(self, task: Task, generator: torch.Generator, count: int) -> list[Walked]:
        """The states after ``count`` random numbers of steps k in 1 .. K-1, in random order."""
        entry, base, K = task.entry, self.model.base, self.settings.max_denoising_steps
        ks = torch.randint(1, K, (count,), generator=generator)
        height, width = self.data.size(entry, generator)
        ids = self.data.time_ids(entry, height, width, generator)
        x = initial_noise(base, height, width, [generator] * int(entry.batch_size or 1))
        scheduler = training_scheduler(self.settings.noise_scheduler)
        scheduler.set_timesteps(K, device=base.device)
        cond, uncond = (c.at(ids).repeat(len(x)) for c in (task.target, task.unconditional))
        rescale = 0.7 if ids is not None else 0.0
        states: dict[int, Tensor] = {}
        at = 0
        for k in sorted(set(ks.tolist())):
            x = denoise(
                base,
                x,
                cond,
                uncond,
                scheduler,
                start=at,
                steps=k,
                guidance=self.settings.denoising_guidance,
                rescale=rescale,
                generators=[generator] * len(x),
            )
            states[k], at = x, k
        return [(states[k], k, ids) for k in ks.tolist()]

    def _unet_input(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The scaled latents, and the timestep that the UNet is given for them (``timestep_map``)."""
        scheduler = training_scheduler(self.settings.noise_scheduler)
        K = self.settings.max_denoising_steps
        if self.settings.timestep_map == "aligned":
            scheduler.set_timesteps(K, device=x.device)
            t = scheduler.timesteps[k]
        else:
            scheduler.set_timesteps(1000, device=x.device)
            t = scheduler.timesteps[k * 1000 // K]
        return scheduler.scale_model_input(x, t), t

    def state_dict(self) -> dict[str, Any]:
        return {"kept": dict(self.kept)}  # its lists are replaced, never changed

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.model.base.device
        self.kept = {number: [(x.to(device), k, ids) for x, k, ids in kept] for number, kept in state["kept"].items()}


def warmup_steps(settings: TrainConfig) -> int:
    """Warm-up steps. A run not longer than the warm-up gets a tenth of its iterations, so that short runs train too."""
    if settings.lr_warmup_steps < settings.iterations:
        return settings.lr_warmup_steps
    tenth = settings.iterations // 10
    log.warning("train.lr_warmup_steps (%d) is not below iterations: using %d", settings.lr_warmup_steps, tenth)
    return tenth


# Optimisers outside torch: lower-case name -> module, class.
_FOREIGN_OPTIMIZERS = {
    **{
        f"{name}8bit".lower(): ("bitsandbytes.optim", f"{name}8bit")
        for name in ("AdamW", "PagedAdamW", "Lion", "PagedLion")
    },
    "sgdnesterov8bit": ("bitsandbytes.optim", "SGD8bit"),
    "lion": ("lion_pytorch", "Lion"),
    "prodigy": ("prodigyopt", "Prodigy"),
    "dadaptation": ("dadaptation", "DAdaptAdam"),
    "dadaptadam": ("dadaptation", "DAdaptAdam"),
    "dadaptadagrad": ("dadaptation", "DAdaptAdaGrad"),
    "dadaptadan": ("dadaptation", "DAdaptAdan"),
    "dadaptsgd": ("dadaptation", "DAdaptSGD"),
    "dadaptlion": ("dadaptation", "DAdaptLion"),
}


def make_optimizer(settings: TrainConfig, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Make the optimiser by its name, in any case: from torch, bitsandbytes (8-bit), or the packages of kohya's
    scripts.

    Without bitsandbytes an 8-bit AdamW is plain AdamW: only 17 of the 384 tensors of SD 1.x are large enough for 8-bit
    storage. Raises `ConfigError` for an unknown name, wrong arguments or a missing package.
    """
    name, options = settings.optimizer_type.lower(), _options(settings.optimizer_args or [])
    options = {"lr": settings.lr, **options}
    if name.endswith("nesterov") or name.endswith("nesterov8bit"):
        options = {"momentum": 0.9, "nesterov": True, **options}
        name = name if name.endswith("8bit") else "sgd"
    if name in _FOREIGN_OPTIMIZERS:
        module, attribute = _FOREIGN_OPTIMIZERS[name]
        try:
            return getattr(importlib.import_module(module), attribute)(weights, **options)
        except ImportError:
            if name not in ("adamw8bit", "pagedadamw8bit"):
                package = module.split(".")[0].replace("_", "-")
                raise ConfigError(
                    f"optimizer {settings.optimizer_type} needs the package {package}: pip install {package}"
                ) from None
            log.info(
                "bitsandbytes is not installed: %s is plain AdamW, with nearly the same results",
                settings.optimizer_type,
            )
            name = "adamw"
    classes = {key.lower(): cls for key, cls in vars(torch.optim).items() if isinstance(cls, type)}
    known = name.removeprefix("torch.optim.")
    if known not in classes or known in ("optimizer", "lbfgs", "sparseadam"):
        raise ConfigError(
            f"unknown optimizer {quoted(settings.optimizer_type)}.{nearest(known, [*classes, *_FOREIGN_OPTIMIZERS])}"
        )
    try:
        return classes[known](weights, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.optimizer_args do not fit {settings.optimizer_type}: {error}") from None


def _options(pairs: str | list[str]) -> dict[str, Any]:
    """Parse ``["weight_decay=0.01", "betas=(0.9, 0.95)"]``, or the same in one string separated by spaces."""
    options = {}
    for pair in pairs.split() if isinstance(pairs, str) else pairs:
        key, equals, value = pair.partition("=")
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            equals = ""
        if not equals:
            raise ConfigError(f"{quoted(pair)} is not valid: write it as name=value")
    return options
