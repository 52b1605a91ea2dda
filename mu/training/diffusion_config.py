"""Settings of every method that erases concepts by changing weights of a diffusion model. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from mu.core.algorithm import Method, Preset
from mu.core.concept import Concept, ConceptList
from mu.core.config import BaseConfig, Devices, Templates, phrased
from mu.core.errors import quoted
from mu.data.shards import find_paths
from mu.models.load_options import LoadingConfig
from mu.models.places import check_name
from mu.training.calibration_config import CalibrateConfig

Counting = Literal["updates", "index"]
"""What ``iterations`` is: the number of updates, or the index of the last one, counted from 0."""


Draws = Annotated[int | None, Field(ge=1, le=65_536)]
"""How many independent draws of prompt, noise and timestep make one update; None: one for each process."""


COMPARISON = Preset(
    "released-comparison",
    "the program of the published comparison, with its images and its count of updates",
    {"train": {"counting": "index"}, "images": {"steps": 100}},
)
"""The preset of the methods that separable erasure's authors compared with."""


CALIBRATED = Preset(
    "calibrated",
    "any concept of any model: the model itself shows what to train on and when to stop",
    {"calibrate": {"on": True}},
)
"""The preset of a method that needs no setting by hand."""


def updates(iterations: int, counting: Counting) -> int:
    """The number of updates that ``iterations`` stands for."""
    return iterations + (counting == "index")


class DiffusionConfig(BaseConfig):
    """The concepts to erase, the model and the device."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    model: str = "CompVis/stable-diffusion-v1-4"
    """The model: ``canvas``, a hub id, a diffusers folder, or a single CompVis .safetensors/.ckpt file."""
    concepts: ConceptList = Field([Concept("Van Gogh")], min_length=1)
    """Concepts to erase, as words of a prompt; several go into one edit."""
    loading: LoadingConfig = LoadingConfig()
    """How to load a diffusion model whose files do not state it."""
    calibrate: CalibrateConfig = CalibrateConfig()
    """Settings by measurement, on the model in front of the search."""
    devices: Devices = "auto"
    """GPU numbers (of several, each gets a process in `mu erase` of a method that trains), or cpu, mps, auto."""

    def idle(self) -> Mapping[str, str]:
        return calibrated_away(self)


class DiffusionMethod(Method):
    """A method that erases concepts from a diffusion model, and can calibrate itself."""

    @classmethod
    def check_files(cls, config: Any) -> None:
        if config.calibrate.on and config.calibrate.clip:
            check_name(config.calibrate.clip)
        images = getattr(config, "images", None)
        for source in images.sources.values() if images else ():
            find_paths(source)


def by_hand(config: BaseConfig, name: str) -> bool:
    """Whether the setting ``name`` is not at its default. A printed settings file names every setting."""
    return name in type(config).model_fields and getattr(config, name) != type(config).model_fields[name].get_default(
        call_default_factory=True
    )


def given_anchors(config: Any) -> Sequence[str]:
    """The anchors that the user set."""
    return config.anchors if by_hand(config, "anchors") else ()


def calibrated_away(config: Any) -> dict[str, str]:
    """The settings of ``config`` that a calibrated search finds itself, or those of ``calibrate`` if it is off."""
    if not config.calibrate.on:
        names = [name for name in type(config.calibrate).model_fields if name != "on"]
        return {f"calibrate.{name}": "calibrate.on is off" for name in names}
    own = {name: f"a calibrated search finds its own {what}" for name, what in _FOUND.items()}
    return {name: why for name, why in own.items() if _has(config, name)}


_SCHEDULE = ("scheduler", "warmup_steps", "scheduler_num_cycles", "scheduler_power", "scheduler_args")
_FOUND = {
    "templates": "phrasings",
    "train.lr": "learning rate",
    **dict.fromkeys([f"train.lr_{name}" for name in _SCHEDULE], "learning rate"),
    "train.stop": "end",
    "prompt.templates": "phrasings",
    "prompt.anchor": "anchor",
    "prompt.neutral": "anchor",
    "prompt.anchors": "words to keep",
}


UNWEIGHTED = {"calibrate.weight": "the method's loss has no term for the words around the concept"}
"""What the calibrated search of a method without such a term does not read."""


def _has(config: Any, name: str) -> bool:
    head, _, rest = name.partition(".")
    return head in type(config).model_fields and (not rest or rest in type(getattr(config, head)).model_fields)


class ComputeConfig(BaseConfig):
    precision: Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"] = "float32"
    """Precision in which the model is loaded and computes (autocast). The search itself uses float32 or finer."""


class TrainConfig(ComputeConfig):
    iterations: int = Field(1000, ge=1)
    """Optimiser steps. More steps erase more, nearby concepts too."""
    lr: float = Field(1e-5, gt=0)
    """Learning rate of Adam."""
    gradients: Literal["zeroed", "summed"] = "zeroed"
    """``summed``: each step uses the sum of all gradients so far, which moves weights several times as far."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW, as a share of lr. 0: Adam without it."""
    max_grad_norm: float = Field(0.0, ge=0)
    """Clip the gradient's norm to this value; 0 turns clipping off."""
    draws: Draws = None
    """Independent draws of prompt, noise and timestep whose mean gradient is one update. Several processes share them.
    Default: one, or one for each process."""
    counting: Counting = "updates"
    """``updates``: ``iterations`` optimiser steps. ``index``: one more, as the released programs count that end at the
    step of index ``iterations``."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; a killed run loses at most this many."""


class ErasureConfig(DiffusionConfig):
    """Settings of methods whose only prompts are templates around the concept."""

    templates: Templates = Field(["{}"], min_length=1)
    """Prompt templates; each has one {} for the concept."""
    train: ComputeConfig = ComputeConfig()
    """The precision of the computation."""

    def prompts(self) -> list[str]:
        """Return each template with each concept."""
        return [phrased(template, concept) for concept in self.concepts for template in self.templates]


class AnchoredConfig(ErasureConfig):
    """Settings of methods that put an anchor in the concept's place."""

    anchors: list[str] = Field([""], min_length=1)
    """Text that replaces the concept in the prompts: one for all concepts, or one for each. Empty: no text."""

    @model_validator(mode="after")
    def _one_anchor_each(self) -> Self:
        if len(self.anchors) not in (1, len(self.concepts)):
            raise ValueError(
                f"{len(self.anchors)} anchors for {len(self.concepts)} concepts: give one for all, or one for each"
            )
        for concept, anchor in zip(self.concepts, self._each(), strict=True):
            if concept.same(anchor):
                raise ValueError(
                    f"the anchor of {quoted(concept)} is the concept itself and would erase nothing: name "
                    "another anchor"
                )
        return self

    def _each(self) -> list[str]:
        return self.anchors if len(self.anchors) > 1 else self.anchors * len(self.concepts)

    def pairs(self) -> list[list[tuple[str, str]]]:
        """Return, for each concept, each template with the concept and with its anchor."""
        return [
            [(phrased(template, concept), phrased(template, anchor)) for template in self.templates]
            for concept, anchor in zip(self.concepts, self._each(), strict=True)
        ]


class ClosedFormConfig(AnchoredConfig):
    """Settings of methods that solve in closed form. Any of ``solved_by`` by hand replaces a calibrated search."""

    solved_by: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _by_hand(self) -> Self:
        if self.calibrate.on and any(by_hand(self, name) for name in self.solved_by):
            self.calibrate = self.calibrate.model_copy(update={"on": False})
        return self

    def idle(self) -> Mapping[str, str]:
        steps = {f"calibrate.{name}": "a closed form is solved without steps" for name in ("rate", "weight", "every")}
        return {**steps, **super().idle()}
