"""Code that the training programs share: common flags, and the location of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mu.algorithms import algorithm
from mu.core.algorithm import Found
from mu.core.compute import there
from mu.core.errors import ConfigError
from mu.core.files import slug
from mu.core.program import Parser, WithoutEffect, note_flag, without_effect

CKPT = Path("models/ldm/stable-diffusion-v1/sd-v1-4-full-ema.ckpt")
HUB = "CompVis/stable-diffusion-v1-4"

PROMPTS = Path(__file__).parent / "prompts.json"
"""The prompts of each category, in the released programs' order. --erased_index and --em_indexes index them."""


def flags(help_: str, example: str, *, runs: bool = True, ckpt: Path = CKPT) -> argparse.ArgumentParser:
    """The flags of all programs; without ``runs``, those of runs are accepted and change nothing."""
    parser = Parser(description=help_, epilog=f"example: {example}")
    parser.add_argument(
        "--ckpt_path",
        type=Path,
        default=ckpt,
        help=f"the model, a CompVis checkpoint; {HUB} if it does not exist (default: {ckpt})",
    )
    parser.set_defaults(usual_ckpt=ckpt)
    parser.add_argument(
        "--model_name", help="the model by any name that mu accepts, instead of --ckpt_path: canvas, a folder"
    )
    for name in ("--config_path", "--diffusers_config_path"):
        parser.add_argument(name, action=WithoutEffect, help="has no effect: the architecture follows from the weights")
    parser.add_argument(
        "--devices",
        "--device",
        type=there,
        default="0,0",
        help="GPU numbers; the first is used, or the CPU without a GPU",
    )
    if not runs:
        parser.add_argument("--models", action=WithoutEffect, help="has no effect: there is no run")
        for name in ("--resume", "--overwrite"):
            parser.add_argument(name, nargs=0, action=WithoutEffect, help="has no effect: the file is always replaced")
        return parser
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="the folder that holds the runs' folders (default: models)"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run")
    return parser


def concept_flags(parser: argparse.ArgumentParser, prompt: str = "the concept, used as the prompt") -> None:
    """Add the flags that name a concept: ``--prompt``, or its index in a list of the released programs."""
    named = parser.add_mutually_exclusive_group(required=True)
    named.add_argument("--prompt", help=prompt)
    named.add_argument("--erased_index", type=int, help="the concept's index in the list of --erase_cat")
    parser.add_argument(
        "--erase_cat", help="style, object, similar or nudity: the list of --erased_index (default: object)"
    )


def steps_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ddim_steps", action=WithoutEffect, help="has no effect: timesteps are uniform over all")


LISTS = ("allartist", "i2p", "artifact")
"""Names of whole lists of words in the released program of ESD."""


def one_concept(prompt: str) -> str:
    """Return ``prompt``. Raises `ConfigError` for one of `LISTS`, which only ESD's program takes."""
    if prompt in LISTS:
        raise ConfigError(
            f"--prompt {prompt} is a list of words of train-scripts/Esd.py: erase its words one by one here, or write "
            f"{prompt.capitalize()!r} for the word itself"
        )
    return prompt


def concept_of(options: argparse.Namespace, *, lists: bool = False) -> tuple[str, str]:
    """Return the concept, and its name in the released programs' folder names."""
    if options.erased_index is None:
        if not lists:
            one_concept(options.prompt)
        if options.erase_cat is not None:
            note_flag(options, "--erase_cat has no effect: --prompt names the concept")
        return options.prompt, word(options.prompt)
    category = options.erase_cat or "object"
    concept = at(prompts(category), options.erased_index, "--erased_index")
    return concept, f"{category}-erased_index_{options.erased_index}"


def base(options: argparse.Namespace) -> str:
    """Return the model's name. Raises `ConfigError` if a given --ckpt_path does not exist."""
    if options.model_name:
        if options.ckpt_path != options.usual_ckpt:
            raise ConfigError("--model_name and --ckpt_path both name the model: leave one out")
        return str(options.model_name)
    if options.ckpt_path != options.usual_ckpt and not options.ckpt_path.exists():
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
    work = chosen(config, model=model)
    work.told = without_effect(options)
    return work.run(resume=options.resume, overwrite=options.overwrite)


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
