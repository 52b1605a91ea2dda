"""Train the style classifier with the released program's flags: ``mu classifier train``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mu.core.compute import there
from mu.core.program import guarded, show_log

HELP = "Train a classifier on <path>/train and <path>/eval, one folder per class; writes <model_path>/artis_model_10."
EXAMPLE = "example: python train-scripts/artist-cls-train.py --device 'cuda:0'"


def main() -> None:
    parser = argparse.ArgumentParser(description=HELP, epilog=EXAMPLE)
    parser.add_argument("--path", type=Path, default=Path("./data/"), help="holds train/ and eval/ (default: ./data/)")
    parser.add_argument("--model_path", type=Path, default=Path("./models/"))
    parser.add_argument("--backbone", default="microsoft/resnet-18", help="a hub id or folder; random: a small network")
    parser.add_argument("--batch_size", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr-max", type=float, default=0.01, help="the highest learning rate, reached half-way")
    for name in ("--lr_schedule", "--lr-min", "--weight-decay", "--momentum", "--normal_mean", "--normal_std"):
        parser.add_argument(name, help="has no effect: cyclic, 0, 5e-4, 0.9; images are normalised for the backbone")
    parser.add_argument("--image_size", type=int, help="side of the images in pixels (default: the backbone's own)")
    parser.add_argument("--device", type=there, default="cuda:0", help="default: cuda:0, or the CPU without a GPU")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing classifier")
    options = parser.parse_args()
    show_log()
    from mu.evaluation.classifier import Recipe, train_classifier

    out = options.model_path / "artis_model_10"
    recipe = Recipe(
        options.backbone, "style", None, options.epochs, options.batch_size, options.lr_max, options.image_size, 0
    )
    folders = (options.path / name for name in ("train", "eval"))
    score = train_classifier(*folders, out, recipe, device=options.device, resume=False, overwrite=options.overwrite)
    print(f"{out}  accuracy {score.value:.4g} of {score.n} held-out images")


if __name__ == "__main__":
    sys.exit(guarded(main))
