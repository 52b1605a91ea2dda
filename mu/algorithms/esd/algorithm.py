"""ESD: train the UNet so that its prediction for the concept points away from the frozen model's prediction for it."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.algorithms.esd.configs import ESDConfig, ESDMethod
from mu.core.errors import ConfigError, quoted, titled
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.diffusion.denoising import denoise, initial_noise
from mu.edits.weights import WeightEdit
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.models.diffusion.schedulers import training_scheduler
from mu.models.formats.compvis import UNET, component_names
from mu.models.parameters import find_module, select
from mu.training.diffusion_method import WeightErasure
from mu.training.tuning import Tuning


class ESD(ESDMethod, WeightErasure):
    """The training of ESD.

    Each step draws a prompt c (published: only the concept's name; see ``templates``) and a number k of DDIM steps in
    0 .. K-1. It computes x_t by k guided steps from noise under c. The loss, with theta* frozen, is

        L = |eps_theta(x_t, c) - (eps_theta*(x_t) - eta (eps_theta*(x_t, c) - eps_theta*(x_t)))|^2,

    the mean over the elements of x_t, at the noise level of x_t. K = 50 costs 24.5 guided steps on average: 2 k + 2
    samples without gradient and 1 with gradient.

    Departures. The sampler of the released code of 2023 leaves out its first step, so at K = 50 it starts at 961, and
    the UNet is told a timestep that is 39 .. 58 above the level of x_t. Here x_t starts at the highest level and the
    UNet is told its own (``sampler``). That code's ``noxattn`` excludes time embedding and output layers, the
    ``esd-u`` of 2025 excludes all normalisations. ESD-u here trains every parameter outside the cross-attention, as in
    the paper. The code of 2025 pushes from the prediction for the concept, so its eta of 2 is 1 here. The ESD in the
    code of separable concept erasure always denoises to x_0, because its sampler ignores the argument that should stop
    it (check: ``k`` in the log is the number of guided steps; count the UNet's calls). For v-prediction models the loss
    is on v.

    On SDXL, images without a negative prompt are guided against zeros (``force_zeros_for_empty_prompt``), and not
    against the encoded empty prompt. The loss uses the encoded one, as the released code does for SDXL. The guided
    steps from noise use it here too, but the pipeline's zeros in the released code.
    """

    config: ESDConfig
    compared: Sequence[Conditioning] = ()
    """In a calibrated search: what each prompt is compared with."""

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        model = self.load_model()
        self.calibrate(model, retained=True)
        self.prepare(model)
        return self.finished(self.train(self.parameters(model), self.step, run, log))

    def prepare(self, model: DiffusionModel) -> None:
        """Encode what all steps share: the empty prompt, the concepts' prompts, and the prompt each is compared with.

        As published that is the empty prompt. A calibrated search compares a phrasing with that of the anchor, so that
        its other words stay.
        """
        self.nothing = model.encode([""])
        if not self.calibrations:
            prompts = self.config.prompts()
            if self.config.joined:
                model.check_concepts(prompts)
            self.encoded = [model.encode([prompt]) for prompt in prompts]
            return
        pairs = [pair for of_one in zip(*self.pairs(), strict=False) for pair in of_one]
        self.encoded = [model.encode([prompt]) for prompt, _ in pairs]
        self.compared = [model.encode([other]) for _, other in pairs]

    def parameters(self, model: DiffusionModel) -> dict[str, nn.Parameter]:
        """The trained parameters, by full name. Raises `ConfigError` if ``variant`` names none of ``model``'s."""
        variant, every = self.config.variant, select(model, f"{model.backbone_name}.*")
        cross = model.parameters("cross-attention")
        names: AbstractSet[str]
        match variant:
            case "esd-x":
                return cross
            case "esd-u":
                names = every.keys() - cross.keys()
            case "full":
                names = every.keys()
            case "noxattn":
                names = {name for name in every if name not in cross and not _is_outer(name)}
            case "notime":
                names = {name for name in every if not _is_outer(name)}
            case "esd-x-strict":
                names = model.parameters("text-keys").keys() | model.parameters("text-values").keys()
            case "esd-all":
                names = {name for name in every if isinstance(find_module(model, name), (nn.Linear, nn.Conv2d))}
            case "esd-u-2025":
                names = {name for name in every if isinstance(find_module(model, name), (nn.Linear, nn.Conv2d))}
                names -= cross.keys()
            case "selfattn":
                names = {name for name in every if ".attn1." in name}
            case "xlayer":
                names = _in_blocks(model, "output_blocks.6.", "output_blocks.8.") & cross.keys()
            case "selflayer":
                within = _in_blocks(model, "input_blocks.4.", "input_blocks.7.")
                names = {name for name in within if ".attn1." in name}
        found = {name: parameter for name, parameter in every.items() if name in names}
        if not found:
            raise ConfigError(
                f"variant {quoted(variant)} names no layer of {titled(model.name)}: choose another, such as esd-x"
            )
        return found

    def step(self, tuning: Tuning, i: int, generator: torch.Generator) -> dict[str, Tensor]:
        model, eta = self.model, self.config.negative_guidance
        c = self.encoded[i % len(self.encoded)]
        other = self.compared[i % len(self.encoded)] if self.compared else self.nothing
        k = int(torch.randint(self.config.denoising_steps, (1,), generator=generator))
        with tuning.frozen() if self.config.latents_from == "frozen" else nullcontext():
            x, t, k = self.partly_denoised(c, k, generator)
        with tuning.frozen():
            e_0, e_p = model.predict_noise(torch.cat([x, x]), t, Conditioning.cat([other, c])).chunk(2)
        e_n = model.predict_noise(x, t, c)
        loss = model.native_weight(int(t)) * F.mse_loss(e_n, e_0 - eta * (e_p - e_0))
        return self.with_retained({"loss": loss}, tuning, x, t, generator) | {"k": torch.tensor(k)}

    def partly_denoised(self, c: Conditioning, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
        """Latents x (1, c, h, w) after some of K guided steps, the timestep that the UNet is told, and their number.

        The number is ``k``, a draw from 0 .. K-1, except with the released sampler. That one stops K - k steps after
        the level that it leaves out.
        """
        model, scheduler = self.model, self.scheduler()
        first, after, told = 0, k, scheduler.timesteps[k]
        if self.config.sampler == "released":
            first, after = 1, 1 + len(scheduler.timesteps) - max(k, 1)
            told = told_of(k, self.config.denoising_steps, generator).to(told)
        x = initial_noise(model, model.default_size, model.default_size, [generator])
        x = denoise(
            model, x, c, self.nothing, scheduler, start=first, steps=after, guidance=self.config.start_guidance,
            generators=[generator],
        )  # fmt: skip
        return scheduler.scale_model_input(x, told), told, after - first

    def scheduler(self) -> Any:
        """A new sampler as ``sampler`` says, with K steps set."""
        K, device = self.config.denoising_steps, self.model.device
        if self.config.sampler == "model":
            return self.model.new_scheduler(K)
        scheduler = training_scheduler("ddim")
        if self.config.sampler == "released":
            scheduler = type(scheduler).from_config(scheduler.config, set_alpha_to_one=False)
        scheduler.set_timesteps(K, device=device)
        if self.config.sampler == "released":
            scheduler.timesteps = 1 + torch.arange(0, 1000, 1000 // K, device=device).flip(0)
        return scheduler


def told_of(k: int, K: int, generator: torch.Generator) -> Tensor:
    """The timestep that the program of 2023 tells the UNet: drawn from the k-th of K parts of 0 .. 999."""
    first, after = round(1000 * k / K), round(1000 * (k + 1) / K)
    return torch.randint(first, after, (), generator=generator)


def _is_outer(name: str) -> bool:
    """Whether a parameter belongs to the time embedding or to the output layers."""
    return name.partition(".")[2].startswith(("time_embedding.", "conv_norm_out.", "conv_out."))


def _in_blocks(model: DiffusionModel, *blocks: str) -> set[str]:
    """The parameters of the UNet in ``blocks``, which have the names of the released program (CompVis)."""
    places = component_names("sd1", "unet", dict(model.backbone.config))
    inside = tuple(UNET + block for block in blocks)
    return {f"{model.backbone_name}.{name}" for name, place in places.items() if place.startswith(inside)}
