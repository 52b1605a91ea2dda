"""``mu classifier``: recognise styles and objects in images."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import Device, Json, Overwrite, Resume

app = typer.Typer(
    name="classifier", help="Train a classifier on folders of images, or classify images.", no_args_is_help=False
)

Head = Annotated[str | None, typer.Option(help="The head to use if the classifier has several: style, object.")]


class Layers(str, Enum):
    head = "head"
    all = "all"


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The output: a transformers folder.")],
    train: Annotated[Path, typer.Option(metavar="DIR", help="Training images, one folder per class.")] = Path(
        "data/train"
    ),
    held_out: Annotated[
        Path,
        typer.Option("--eval", metavar="DIR", help="Held-out images that select the best epoch, one folder per class."),
    ] = Path("data/eval"),
    backbone: Annotated[
        str, typer.Option(help="A hub id or folder like microsoft/resnet-18; random: a small network.")
    ] = "random",
    head: Annotated[str, typer.Option(help="What the classes are: style, object.")] = "style",
    layers: Annotated[
        Layers | None, typer.Option(help="Layers to train. Default: all for a random backbone, else the head.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 20,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 30,
    rate: Annotated[float, typer.Option(help="The highest learning rate, reached half-way.")] = 0.01,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels. Default: the backbone's own.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    device: Device = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train a classifier of styles or objects. Each folder's name is its class.

    Example: mu classifier train --train ./data/train --eval ./data/eval --out outputs/classifier
    """
    from mu.cli.output import print_json
    from mu.core.program import show_log
    from mu.evaluation.classifier import Recipe, train_classifier

    show_log()
    recipe = Recipe(backbone, head, layers.value if layers else None, epochs, batch, rate, size, seed)
    score = train_classifier(train, held_out, out, recipe, device=device, resume=resume, overwrite=overwrite)
    if json:
        print_json({"classifier": str(out), **score.to_json()})
        return
    print(f"classifier  {out}\naccuracy    {score.value:.4g} on {score.n} held-out images")


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="A classifier's folder, canvas-judge, or a hub id.")],
    images: Annotated[Path, typer.Argument(help="A folder of images, or of one folder per requested class.")],
    concept: Annotated[str | None, typer.Option(help="The class that all images should show.")] = None,
    head: Head = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Compute the share of images in the requested class; without a class, count the classifier's answers.

    Example: mu classifier score outputs/classifier outputs/images --concept "Van Gogh"
    """
    from collections import Counter

    from mu.cli.output import print_json, print_table
    from mu.core.compute import loading_on
    from mu.evaluation.classifier import answers, folder_accuracy, images_in
    from mu.models import EMBEDDED
    from mu.models.judge import Judge

    with loading_on(device) as chosen:
        judge = Judge.open(EMBEDDED.get(model, model), chosen)
    if concept is not None or (images.is_dir() and any(path.is_dir() for path in images.iterdir())):
        found = folder_accuracy(judge, images, head=head, concept=concept)
        if json:
            print_json(found.to_json())
            return
        print_table(["asked for", "seen in"], [[name, f"{share:.4g}"] for name, share in found.per_item.items()])
        print(f"accuracy  {found.value:.4g} of {found.n} images")
        return
    seen = Counter(answers(judge, images_in(images), head))
    if json:
        print_json({"n": seen.total(), "seen": dict(seen.most_common())})
        return
    print_table(["seen", "images"], [[name, str(count)] for name, count in seen.most_common()])
