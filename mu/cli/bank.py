"""``mu bank``: keep several edits of one model in a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mu.cli.options import Device, Json, Overwrite, check_places
from mu.core.errors import titled

if TYPE_CHECKING:
    from mu.edits.bank_folder import BankFolder
    from mu.models.load_options import FoundOn
    from mu.models.parameters import EditableModel

app = typer.Typer(
    name="bank", help="Keep edits of a model in a folder; erase, restore or merge any of them.", no_args_is_help=False
)

Folder = Annotated[Path, typer.Option("--bank", metavar="DIR", help="The bank's folder.")]
Concepts = Annotated[
    list[str], typer.Argument(metavar="CONCEPT...", help="Concepts, by the names that `mu bank list` prints.")
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="The reason, recorded in the bank's log.")]
Transfer = Annotated[
    bool, typer.Option("--transfer", help="Accept a model whose weights differ, such as a sibling checkpoint.")
]
BaseModel = Annotated[str | None, typer.Option("--model", help="The base model. Default: the bank's own.")]


SHOWN, WORST = 200, 10
"""Of more than `SHOWN` pairs of edits, the `WORST` are printed."""


@app.command("list")
def list_(bank: Folder, json: Json = False) -> None:
    """List the edits of a bank, which of them are on, and their strengths.

    Example: mu bank list --bank outputs/bank
    """
    _show(bank, json)


@app.command()
def add(
    edits: Annotated[list[str], typer.Argument(metavar="EDIT|RUN...", help="Edit files or run folders.")],
    bank: Folder,
    model: Annotated[
        str | None, typer.Option(help="The base model. Default: the bank's base; for a new bank, the edit's.")
    ] = None,
    strength: Annotated[float, typer.Option(help="The number that the edits are multiplied by.")] = 1.0,
    transfer: Transfer = False,
    reason: Reason = "",
    device: Device = None,
    json: Json = False,
) -> None:
    """Add edits to a bank and switch them on. The folder is created if it does not exist.

    Example: mu bank add outputs/neon outputs/star --bank outputs/bank --reason "first release"
    """
    from mu.core.program import show_log
    from mu.edits.bank_folder import BankFolder
    from mu.edits.places import edit_file

    show_log()
    for each in edits:
        edit_file(Path(each))
    check_places(model)
    from mu.edits.files import open_edit
    from mu.models.load_options import base_of

    folder = BankFolder(bank)
    opened = [open_edit(each) for each in edits]
    folder.refuse(edit.concept() for edit in opened)
    known: Any = [folder.read()] if folder.json.exists() else [edit.info for edit in opened]
    base = _loaded(base_of(model, known), known, device)
    folder.add(base, *opened, strength=strength, reason=reason, transfer=transfer)
    _show(bank, json)


@app.command()
def remove(concepts: Concepts, bank: Folder, reason: Reason = "", json: Json = False) -> None:
    """Remove edits from a bank and delete their files. To bring a concept back temporarily, use restore.

    Example: mu bank remove "neon style" --bank outputs/bank --reason "replaced by a better edit"
    """
    from mu.edits.bank_folder import BankFolder

    BankFolder(bank).remove(*concepts, reason=reason)
    _show(bank, json)


@app.command()
def restore(
    concepts: Concepts,
    bank: Folder,
    reason: Reason = "",
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="Make images of sentences with each concept, and say how far the edits that stay on move them. "
            "Default: measure if edits stay on.",
        ),
    ] = True,
    model: BaseModel = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Restore concepts exactly. Their edits stay in the bank, switched off.

    Edits that stay on may still change a restored concept's images a little: the command says by how much.

    Example: mu bank restore "neon style" --bank outputs/bank --reason "the artist agreed"
    """
    from mu.edits.bank_folder import BankFolder

    folder = BankFolder(bank)
    folder.restore(*concepts, reason=reason)
    _show(bank, json)
    if measure and any(entry.on for entry in folder.read().edits):
        _tell_distance(folder, concepts, model, device)


@app.command()
def erase(
    concepts: Concepts,
    bank: Folder,
    strength: Annotated[float | None, typer.Option(help="The edits' new strength. Default: unchanged.")] = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Switch the edits of restored concepts on again, or change their strength.

    Example: mu bank erase "neon style" --bank outputs/bank --reason "the artist withdrew"
    """
    from mu.edits.bank_folder import BankFolder

    BankFolder(bank).erase(*concepts, strength=strength, reason=reason)
    _show(bank, json)


@app.command()
def check(
    bank: Folder,
    model: BaseModel = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="The largest share at which a concept counts as retained. Default: 0.01."),
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the shares as a heat map, to a .png or .svg file.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure which edits act on other concepts, so that restoring them changes those. Exit with 1 if any does.

    Of many edits the ten worst pairs are shown; --json prints all.

    Example: mu bank check --bank outputs/bank
    """
    from mu.cli.output import print_json, print_table
    from mu.core.program import show_log
    from mu.edits.bank_folder import BankFolder
    from mu.edits.conflicts import check_chart, worst, write_chart
    from mu.edits.protection import TOLERANCE

    show_log()
    folder = BankFolder(bank)
    if chart:
        check_chart(chart)
    found = folder.check(_base(folder, model, device), tolerance)
    leaking, limit = [leak for leak in found if leak.leaking], TOLERANCE if tolerance is None else tolerance
    if chart:
        write_chart(chart, found, limit)
    many = len(found) > SHOWN
    shown = worst(found, WORST) if many else found
    if json:
        print_json([leak.to_json() for leak in found])
    else:
        cells = [
            (
                leak.edit,
                leak.on,
                "" if leak.share is None else f"{leak.share:.2g}",
                "" if leak.sentences is None else f"{leak.sentences:.2g}",
                "yes" if leak.listed else "no",
                leak.verdict,
            )
            for leak in shown
        ]
        print_table(["edit of", "acts on", "share", "in sentences", "listed as protected", "verdict"], cells)
        unknown = dict.fromkeys(leak.edit for leak in found if leak.share is None)
        if many:
            print(f"{len(leaking)} of {len(found)} pairs act on each other beyond {limit:g}; the {len(shown)} worst:")
        print(
            *(leak for leak in shown if leak.leaking),
            *(leak.of_sentences() for leak in found if (leak.sentences or 0) > limit and not leak.leaking),
            *(f"{titled(name)} is not measurable by text: generate images to see" for name in unknown),
            sep="\n",
        )
    if leaking:
        raise typer.Exit(1)


@app.command()
def merge(
    bank: Folder,
    out: Annotated[Path, typer.Option(help="The output file; for diffusers, transformers, open_clip: a folder.")],
    form: Annotated[
        str,
        typer.Option(
            "--format", help="kohya, peft, diffusers, unet, compvis, transformers or open_clip, as in `mu merge`."
        ),
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONCEPT",
            help="Merge this concept's edit, on or off; repeat for several. Default: every edit that is on.",
        ),
    ] = None,
    model: BaseModel = None,
    transfer: Transfer = False,
    overwrite: Overwrite = False,
    reason: Reason = "",
    device: Device = None,
    json: Json = False,
) -> None:
    """Write the edits that are on for other tools, and log which they are and the result's SHA-256.

    Example: mu bank merge --bank outputs/bank --format diffusers --out outputs/merged --reason "release 1.2"
    """
    from mu.cli.output import print_json
    from mu.core.program import show_log
    from mu.edits.bank_folder import BankFolder

    show_log()
    folder = BankFolder(bank)
    done = folder.merge(
        _base(folder, model, device),
        out,
        form,
        only=only or None,
        overwrite=overwrite,
        reason=reason,
        transfer=transfer,
    )
    if json:
        print_json(done)
    else:
        print(f"{out}  sha256 {done['sha256']}")


@app.command("log")
def log_(bank: Folder, json: Json = False) -> None:
    """Show when concepts were erased, restored and merged, and why.

    Example: mu bank log --bank outputs/bank --json
    """
    from mu.cli.output import print_json, print_table
    from mu.core.program import show_log
    from mu.edits.bank_folder import BankFolder

    show_log()
    rows = BankFolder(bank).history()
    if json:
        print_json(rows)
        return
    cells = [
        [row["time"], row["verb"], ", ".join(edit["concept"] for edit in row["edits"]), row["reason"]] for row in rows
    ]
    print_table(["time", "verb", "concepts", "reason"], cells)


def _tell_distance(folder: BankFolder, concepts: Iterable[str], model: str | None, device: str | None) -> None:
    """Print to stderr how far the edits that are on move the images of each of ``concepts``."""
    import sys

    from mu.core.errors import MuError
    from mu.diffusion.restored import left_over
    from mu.models.diffusion import DiffusionModel

    try:
        base = _base(folder, model, device)
        if isinstance(base, DiffusionModel):
            opened = folder.open(base)
            for concept in dict.fromkeys(concepts):
                print(left_over(opened, concept), file=sys.stderr)
    except MuError as trouble:  # the concepts are restored, whatever can be measured
        print(f"the distance from the base is not measured: {trouble}", file=sys.stderr)


def _base(folder: BankFolder, model: str | None, device: str | None) -> EditableModel:
    state = folder.read()
    return _loaded(state.base if model is None else model, [state], device)


def _loaded(name: str, found: Iterable[FoundOn], device: str | None) -> EditableModel:
    from mu.models import load
    from mu.models.load_options import loading

    return load(name, device=device, **loading(name, found, clip_skip=None, prediction_type=None))


def _show(bank: Path, json: bool) -> None:
    from mu.cli.output import print_json, print_table
    from mu.edits.bank_folder import BankFolder

    folder = BankFolder(bank)
    state = folder.read()
    if json:
        print_json(state.model_dump(mode="json"))
        return
    cells = [
        [
            e.concept,
            "erased" if e.on else "restored",
            f"{e.strength:g}",
            e.file if (folder.folder / e.file).exists() else f"{e.file} is missing",
        ]
        for e in state.edits
    ]
    print_table(["concept", "state", "strength", "file"], cells, title=f"{bank}: edits of {state.base}")
