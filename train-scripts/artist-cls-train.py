"""Train the style classifier with the released program's flags: ``mu classifier train``."""

from __future__ import annotations

import sys
from pathlib import Path

from mu.core.compute import there
from mu.core.program import Parser, WithoutEffect, guarded, show_log, tell

HELP = "Train a classifier on <path>/train and <path>/eval, one folder per class; writes <model_path>/artis_model_10."
EXAMPLE = "example: python train-scripts/artist-cls-train.py --device 'cuda:0'"

FIXED = {
    ("--lr_schedule", "--lr-schedule"): "the rate rises and falls once",
    ("--lr-min", "--lr_min"): "the rate begins and ends at 0",
    ("--weight-decay", "--weight_decay"): "it is 5e-4",
    ("--momentum",): "it is 0.9",
    ("--normal_mean",): "images are normalised as for the backbone's training",
    ("--normal_std",): "images are normalised as for the backbone's training",
}


def main() -> None:
    parser = Parser(description=HELP, epilog=EXAMPLE)
    parser.add_argument("--path", type=Path, default=Path("./data/"), help="holds train/ and eval/ (default: ./data/)")
    parser.add_argument("--model_path", type=Path, default=Path("./models/"))
    parser.add_argument("--backbone", default="microsoft/resnet-18", help="a hub id or folder; random: a small network")
    parser.add_argument("--batch_size", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--lr-max", "--lr_max", type=float, default=0.01, help="the highest learning rate, reached half-way"
    )
    for names, reason in FIXED.items():
        parser.add_argument(*names, action=WithoutEffect, help=f"has no effect: {reason}")
    parser.add_argument("--image_size", type=int, help="side of the images in pixels (default: the backbone's own)")
    parser.add_argument("--device", type=there, default="cuda:0", help="default: cuda:0, or the CPU without a GPU")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing classifier")
    options = parser.parse_args()
    show_log()
    tell(options)
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
