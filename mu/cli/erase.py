"""``mu erase``: find the edit that erases a concept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mu.cli.options import Devices, Overwrite, Resume, pairs
from mu.core.errors import ConfigError
from mu.core.files import fitting, slug

if TYPE_CHECKING:
    from mu.core.algorithm import Algorithm, Found, Method
    from mu.edits.edit import Edit


def erase(
    method: Annotated[str, typer.Argument(help="The method: see `mu methods`.")],
    concept: Annotated[list[str] | None, typer.Option(help="The concept to erase; repeat for several.")] = None,
    concepts_file: Annotated[
        Path | None,
        typer.Option(
            "--concepts", metavar="FILE", help="Concepts to erase, one a line, or the column 'concept' of a CSV."
        ),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            help="What stands in the concept's place: one for all, or repeat it for each. Not for all methods."
        ),
    ] = None,
    retain: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texts to retain, in a file like that of --concepts. Not for all methods."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="canvas, a hub id, a folder, or a .safetensors/.ckpt file. Default: the embedded model of the "
            "preset or the method: canvas, or canvas-clip."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings as YAML (see `mu config`); --concept overrides its concepts.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A preset: see `mu methods METHOD`. Default: the one for the model.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, like train.iterations=100."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: outputs/METHOD/CONCEPT.")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt for the images before and after; repeat for several.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", "--pictures/--no-pictures", help="Generate images before and after.")
    ] = True,
    bank: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also add the edit to this bank; see `mu bank`.")
    ] = None,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="With --bank: the reason, recorded in the bank's log.")
    ] = "",
    track: Annotated[
        str | None, typer.Option(metavar="TRACKER", help="Also send the losses to wandb or tensorboard.")
    ] = None,
    device: Devices = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16. Default: the settings' value.")
    ] = None,
) -> None:
    """Find the edit that erases concepts. Writes the edit, images before and after, and a report to a folder.

    Example: mu erase spm --concept "neon style" --set train.iterations=100 --out outputs/neon
    """
    from mu import algorithms
    from mu.core import launch, parallel, threads
    from mu.core.concept import distinct
    from mu.core.config import read_settings, refuse_twice
    from mu.core.program import parsed, show_log
    from mu.core.tracking import tracker
    from mu.data.names import check_apart, read_concepts, read_retained
    from mu.models.places import check_name

    show_log()
    chosen = algorithms.method(method)
    preset = chosen.preset_name(preset) if preset else None
    concepts = distinct([*(concept or ()), *(read_concepts(concepts_file) if concepts_file else ())])
    retained = read_retained(retain) if retain else {}
    lists = {"--anchor": list(anchor or ()), "--retain": list(retained)}
    listed = {_setting(chosen, option): texts for option, texts in lists.items() if texts}
    if track:
        tracker(track)
    if reason and not bank:
        raise ConfigError("--reason belongs to --bank")
    if config and (model is not None or preset or device or precision):
        raise ConfigError(
            "--config FILE already sets model, preset, device and precision: change them in it or with --set KEY=VALUE"
        )
    if not (config or concepts):
        raise ConfigError("nothing to erase: pass --concept 'neon style', --concepts FILE, or --config FILE")
    name = model
    if not config and model is None:
        name = _embedded(chosen, preset)
    wanted = parsed(chosen.config_class, pairs(settings or [], "--set"))
    typed = {
        "--concept": concept, "--concepts": concepts_file, "--anchor": anchor, "--retain": retain, "--model": model,
        "--out": out, "--device": device, "--precision": precision, "--track": track,
    }  # fmt: skip
    given_by = {**chosen.set_by, "--concepts": chosen.set_by["--concept"]}
    given_by |= {option: (_setting(chosen, option),) for option, texts in lists.items() if texts}
    refuse_twice(chosen.config_class, wanted, {o: names for o, names in given_by.items() if typed[o]})
    out = out or (None if config else Path("outputs") / method / _folder(concepts, concepts_file))
    overrides = (chosen.placed(out, device, precision), listed, wanted)
    if config and not concepts:
        given = chosen.config_class.load(config, *overrides)
    else:
        base = read_settings(config, chosen.config_class) if config else preset
        given = chosen.for_concepts(concepts, name, base, *overrides)
    if retain and (why := given.unused().get(_setting(chosen, "--retain"))):
        raise ConfigError(f"--retain would have no effect, as {why}: add --preset calibrated, or leave it out")
    check_apart(retained, retain or "", getattr(given, "concepts", ()))
    check_name(given.model)  # type: ignore[attr-defined]
    chosen.check_files(given)
    if threads.ours and (devices := launch.several(given)):
        sys.exit(launch.launched(devices))
    work = algorithms.algorithm(method)(given)
    if bank:
        _expect(work, bank)
    found = work.run(resume=resume, overwrite=overwrite, track=track)
    if parallel.leave():
        return
    edited = _model(work, found, device) if bank or images else None
    if bank:
        _add(work, found, edited, bank, reason)
    if images:
        _draw(found, edited, prompt)
    from mu.report import write_report

    print(f"edit    {found.run.edit}\nreport  {write_report(found.run)}")


def _embedded(method: type[Method], preset: str | None) -> str:
    """Return the embedded model that ``preset``, or else any preset of ``method``, is made for: canvas if it can be."""
    from mu.models.places import EMBEDDED

    presets = [method.preset(preset)] if preset else method.presets.values()
    named = {getattr(each, "model", "") for each in presets}
    return next((name for name in EMBEDDED if name in named), "canvas")


def _setting(method: type[Method], option: str) -> str:
    """Return the setting of ``method`` that ``option`` gives. Raises `ConfigError` if the method has none."""
    from mu.core.config import kind_of

    names = [name for name in method.set_by[option] if kind_of(method.config_class, name) is not Any]
    if not names:
        raise ConfigError(f"{method.name} has no setting for {option}: leave it out; see `mu config {method.name}`")
    return names[0]


def _expect(work: Algorithm, bank: Path) -> None:
    """Refuse, before the search, what the bank would not accept; let the search account for the bank's edits."""
    from mu.edits.bank_folder import BankFolder

    BankFolder(bank).refuse([*work.concepts(), ", ".join(work.concepts())])
    work.join(BankFolder(bank))


def _model(work: Algorithm, found: Found, device: str | None) -> Any:
    """Return the model that the edit was found on. Load it the same way if a resumed run had nothing left to search."""
    from mu.models import load
    from mu.models.load_options import loading

    if work.model is not None:
        return work.model
    name = found.run.origin().model or "canvas"
    return load(name, device=device, **loading(name, [_edit(found).info], clip_skip=None, prediction_type=None))


def _edit(found: Found) -> Edit:
    return cast("Edit", found.edit)


def _add(work: Algorithm, found: Found, model: Any, bank: Path, reason: str) -> None:
    """Add the run's edits to the bank, one per concept if the method finds them separately."""
    from mu.edits.bank_folder import BankFolder

    folder, added = BankFolder(bank), cast("Sequence[Edit]", work.separate(found.edit))
    older = [*folder.open(model).edits.values()] if folder.json.exists() else []
    instead = cast("Sequence[Edit]", work.reconciled(older, added, found.run))
    folder.add(model, *added, instead=instead, reason=reason)


def _draw(found: Found, model: Any, prompts: list[str] | None) -> None:
    from mu.diffusion.image_folder import before_after
    from mu.edits.bank import Bank
    from mu.models.diffusion import DiffusionModel

    if isinstance(model, DiffusionModel):  # CLIP and LLaVA make no images
        before_after(found.run, model, Bank(model, [_edit(found)]), target_prompts=prompts)


def _folder(concepts: Sequence[str], file: Path | None = None) -> str:
    """``neon style`` and ``star`` -> ``neon-style+star``; of a file of concepts, its name."""
    if file:
        return fitting(slug(file.stem) or "concepts")
    return fitting("+".join(slug(concept) or "concept" for concept in concepts))
