"""LPIPS between images of the base and of the edited model, with the released program's flags."""

from __future__ import annotations

import sys
from pathlib import Path

from _measuring import folder_pairs, judge, of_cases

from mu.core.compute import there
from mu.core.errors import DataError
from mu.core.program import Parser, guarded, show_log

HELP = "Measure the mean LPIPS (AlexNet) of equally named images in two folders, or in each pair of equally named subfolders."
EXAMPLE = "example: python eval-scripts/lpips_eval.py --original_path original --edited_path edited --prompts_path art_prompts.csv"


def main() -> None:
    parser = Parser(description=HELP, epilog=EXAMPLE)
    parser.add_argument("--original_path", "--path1", type=Path, required=True)
    parser.add_argument("--edited_path", "--path2", type=Path, required=True)
    parser.add_argument("--prompts_path", type=Path, help="a CSV: only images <case_number>_<k>.png of its cases")
    parser.add_argument(
        "--network",
        choices=("alex", "canvas-judge"),
        default="alex",
        help="canvas-judge: an LPIPS-like distance, offline",
    )
    parser.add_argument("--device", type=there, default="cuda:0", help="default: cuda:0, or the CPU without a GPU")
    options = parser.parse_args()
    show_log()
    from mu.core.compute import pick_device
    from mu.diffusion.image_files import read_images
    from mu.evaluation.backbones import lpips_network
    from mu.evaluation.metrics.lpips import lpips

    pairs = {}
    for folder, (first, second) in folder_pairs(options.original_path, options.edited_path).items():
        there_too = {path.name for path in first.glob("*.png")}
        edited = of_cases(sorted(second.glob("*.png")), options.prompts_path)
        pairs[folder] = [(first / path.name, path) for path in edited if path.name in there_too]
        if not pairs[folder]:
            raise DataError(
                f"{first} and {second} have no PNG images with equal names: name the folders of the same prompts"
            )
    device = pick_device(options.device)
    if options.network == "alex":
        features, weights = lpips_network("alex", device)
    else:
        features, weights = judge(device).feature_maps, None
    found: list[float] = []
    for folder, both in pairs.items():
        here = [float(lpips(*(read_images([path]) for path in pair), features, weights)) for pair in both]
        if len(pairs) > 1:
            print(f"LPIPS ({options.network})  {sum(here) / len(here):.4f} of {len(here)} images  {folder}")
        found += here
    print(f"LPIPS ({options.network})  {sum(found) / len(found):.4f} of {len(found)} images")


if __name__ == "__main__":
    sys.exit(guarded(main))
