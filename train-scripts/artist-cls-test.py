"""Accuracy of the style classifier, with the released program's flags: ``mu classifier score``."""

from __future__ import annotations

import sys
from pathlib import Path

from mu.core.compute import there
from mu.core.program import Parser, WithoutEffect, guarded, show_log, tell

HELP = "Measure a classifier's accuracy on folders of images, one folder per class."
EXAMPLE = "example: python train-scripts/artist-cls-test.py --path './evaluation_folder/'"


def main() -> None:
    parser = Parser(description=HELP, epilog=EXAMPLE)
    parser.add_argument(
        "--path",
        type=Path,
        default=Path("./evaluation_folder/"),
        help="holds one folder per class, with the class's name, or such folders in eval/",
    )
    parser.add_argument(
        "--model_path",
        type=Path,
        default=Path("./models/artis_model_10"),
        help="the classifier's folder, canvas-judge, or a hub id",
    )
    parser.add_argument("--head", help="the head to use if the classifier has several: style, object")
    parser.add_argument("--batch_size", action=WithoutEffect, help="has no effect: the accuracy does not depend on it")
    parser.add_argument("--device", type=there, default="cuda:0", help="default: cuda:0, or the CPU without a GPU")
    options = parser.parse_args()
    show_log()
    tell(options)
    from mu.core.compute import pick_device
    from mu.evaluation.classifier import folder_accuracy
    from mu.models import EMBEDDED
    from mu.models.judge import Judge

    place = EMBEDDED.get(str(options.model_path), options.model_path)
    images = options.path / "eval" if (options.path / "eval").is_dir() else options.path
    score = folder_accuracy(Judge.open(place, pick_device(options.device)), images, head=options.head)
    for name, share in score.per_item.items():
        print(f"{name}  {share:.4g}")
    print(f"accuracy  {score.value:.4g} of {score.n} images")


if __name__ == "__main__":
    sys.exit(guarded(main))
