"""``mu gradients``: compute a gradient file for slug."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mu.cli.options import Devices, Json, Overwrite, pairs
from mu.core.errors import ConfigError

if TYPE_CHECKING:
    from mu.algorithms.single_layer_unlearning_gradient.algorithm import SingleLayerUnlearningGradientAlgorithm
    from mu.training.gradient_files import Kind


def gradients(
    out: Annotated[Path, typer.Option(help="The output file, NAME.safetensors.")],
    model: Annotated[str, typer.Option(help="A CLIP: canvas-clip, open_clip:ARCH/TAG, or a folder.")] = "canvas-clip",
    forget: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Pairs that show --concept: web shards, an image folder, or canvas."),
    ] = None,
    concept: Annotated[str | None, typer.Option(help="With --forget: the concept that the pairs show.")] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Instead of --forget: pairs of everything else; one file serves all concepts."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of slug, like data.n_retain=2000."),
    ] = None,
    overwrite: Overwrite = False,
    device: Devices = None,
    precision: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. Default: float32.")] = None,
    as_json: Json = False,
) -> None:
    """Compute a CLIP's forget or retain gradient, and write it as a file that slug reads instead of images.

    Several devices compute a part of the pairs each, which is a run of the tar files.

    Example: mu gradients --model canvas-clip --forget canvas --concept "Ada Stone" --out outputs/ada.safetensors
    """
    from mu import algorithms
    from mu.cli.output import print_json
    from mu.core import launch, parallel, threads
    from mu.core.concept import Concept
    from mu.core.config import refuse_twice
    from mu.core.program import parsed, show_log
    from mu.models.places import check_name

    show_log()
    if bool(forget) == bool(retain):
        raise ConfigError("pass --forget SOURCE with --concept, or --retain SOURCE" + (", not both" if forget else ""))
    if bool(forget) != bool(concept):
        raise ConfigError(
            "--forget needs --concept: name what the images show" if forget else "--concept belongs to --forget"
        )
    name = Concept(concept) if concept else ""
    slug = algorithms.method("slug")
    placed = {key: value for key, value in (("devices", device), ("precision", precision)) if value}
    sources = {f"data.{key}": value for key, value in (("forget", forget), ("retain", retain)) if value}
    options = parsed(slug.config_class, pairs(settings or [], "--set"))
    typed = {"--forget": forget, "--retain": retain, "--concept": concept, "--device": device, "--precision": precision}
    given_by = {**slug.set_by, "--forget": ("data.forget",), "--retain": ("data.retain",)}
    refuse_twice(slug.config_class, options, {"--model": ("model",)} | {o: given_by[o] for o in typed if typed[o]})
    given = slug.for_concepts([name] if name else [], model, None, placed, sources, options)
    check_name(model)
    from mu.training.gradient_files import refuse

    refuse(out, overwrite=overwrite)
    if threads.ours and (devices := launch.apart(device or "")):
        sys.exit(launch.launched(devices, "run the command again"))
    work = algorithms.algorithm("slug")(given)
    kind: Kind = "forget" if forget else "retain"
    made = cast("SingleLayerUnlearningGradientAlgorithm", work).save_gradients(kind, out, name, overwrite=overwrite)
    if parallel.leave():
        return
    if as_json:
        print_json({"path": str(out), **made.to_json()})
    else:
        print(out)
