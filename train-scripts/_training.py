"""Code that the training programs share: common flags, and the location of a run."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mu.algorithms import algorithm
from mu.core.algorithm import Found
from mu.core.compute import there
from mu.core.errors import ConfigError
from mu.core.files import slug

CKPT = Path("models/ldm/stable-diffusion-v1/sd-v1-4-full-ema.ckpt")
HUB = "CompVis/stable-diffusion-v1-4"
log = logging.getLogger("mu")

PROMPTS = Path(__file__).parent / "prompts.json"
"""The prompts of each category, in the released programs' order. --erased_index and --em_indexes index them."""


def flags(help_: str, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=help_, epilog=f"example: {example}")
    parser.add_argument(
        "--ckpt_path",
        type=Path,
        default=CKPT,
        help=f"the model, a CompVis checkpoint; {HUB} if it does not exist (default: {CKPT})",
    )
    parser.add_argument(
        "--model_name", help="the model by any name that mu accepts, instead of --ckpt_path: canvas, a folder"
    )
    parser.add_argument("--config_path", help="has no effect: the architecture follows from the weights")
    parser.add_argument("--diffusers_config_path", help="has no effect: the architecture follows from the weights")
    parser.add_argument(
        "--devices",
        "--device",
        type=there,
        default="0,0",
        help="GPU numbers; the first is used, or the CPU without a GPU",
    )
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="the folder that holds the runs' folders (default: models)"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run")
    return parser


class WithoutEffect(argparse.Action):
    """A flag of the released program that is accepted without effect. A warning is logged if it is given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        log.warning("%s has no effect: %s", option_string, (self.help or "").partition(": ")[2])


def concept_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a concept: ``--prompt``, or its index in a list of the released programs."""
    named = parser.add_mutually_exclusive_group(required=True)
    named.add_argument("--prompt", help="the concept, used as the prompt")
    named.add_argument("--erased_index", type=int, help="the concept's index in the list of --erase_cat")
    parser.add_argument(
        "--erase_cat", default="object", help="style, object, similar or nudity: the list of --erased_index"
    )
    parser.add_argument("--ddim_steps", action=WithoutEffect, help="has no effect: timesteps are uniform over all")


def concept_of(options: argparse.Namespace) -> tuple[str, str]:
    """Return the concept, and its name in the released programs' folder names."""
    if options.erased_index is None:
        return options.prompt, word(options.prompt)
    concept = at(prompts(options.erase_cat), options.erased_index, "--erased_index")
    return concept, f"{options.erase_cat}-erased_index_{options.erased_index}"


def base(options: argparse.Namespace) -> str:
    """Return the model's name. Raises `ConfigError` if a given --ckpt_path does not exist."""
    if options.model_name:
        return str(options.model_name)
    if options.ckpt_path != CKPT and not options.ckpt_path.exists():
        raise ConfigError(f"--ckpt_path {options.ckpt_path} does not exist: check the name, or leave it out for {HUB}")
    return str(options.ckpt_path) if options.ckpt_path.exists() else HUB


def erase(
    method: str,
    concept: str | Sequence[str],
    name: str,
    settings: Mapping[str, Any],
    options: argparse.Namespace,
    model: Any = None,
) -> Found:
    """Find the edit of ``concept`` (one or several) with ``settings`` (by dotted name). It goes to
    ``models/<name>/``."""
    chosen, concepts = algorithm(method), [concept] if isinstance(concept, str) else concept
    named = {"model": base(options), "concepts": list(concepts)}
    placed = {"devices": options.devices, "output_dir": str(options.models / name)}
    config = chosen.config_class.parse(named, settings, placed)
    return chosen(config, model=model).run(resume=options.resume, overwrite=options.overwrite)


def images_of(concept: str) -> str | None:
    """Return ``./data/<concept>`` if generate-data.py made it. With None, training generates its own images."""
    folder = Path("data") / concept
    return str(folder) if folder.is_dir() else None


def word(text: str) -> str:
    """Return ``Van Gogh`` as ``VanGogh``, the released programs' form in file names."""
    return slug(text.replace(" ", ""))


def prompts(category: str) -> list[str]:
    known: dict[str, list[str]] = json.loads(PROMPTS.read_text(encoding="utf-8"))
    if category not in known:
        raise ConfigError(f"unknown --erase_cat {category!r}; choose {', '.join(known)}")
    return known[category]


def at(listed: list[str], index: int, flag: str) -> str:
    if not 0 <= index < len(listed):
        raise ConfigError(f"{flag} {index} is not in 0..{len(listed) - 1}: choose from {', '.join(listed)}")
    return listed[index]
