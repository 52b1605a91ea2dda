"""Style loss between images of the base and of the edited model, with the released program's flags."""

from __future__ import annotations

import sys
from pathlib import Path

from _measuring import check_table, flags, images, judge, of_cases, write_table

from mu.core.errors import DataError
from mu.core.program import guarded, show_log

HELP = "Write Gatys' style and content loss (VGG-19) of equally named images in two folders, at their own size, as CSV."
EXAMPLE = (
    "python eval-scripts/styleloss.py --original_path original --edited_path edited --promtps_path art_prompts.csv"
)


def main() -> None:
    parser = flags(HELP, EXAMPLE, network="vgg19")
    parser.add_argument("--original_path", type=Path, required=True)
    parser.add_argument("--edited_path", type=Path, required=True)
    parser.add_argument(
        "--prompts_path", "--promtps_path", type=Path, help="a CSV: only images <case_number>_<k>.png of its cases"
    )
    parser.add_argument("--save_path", type=Path, help="the CSV (default: <edited_path>/<its name>_styleloss.csv)")
    parser.add_argument("--image", action="store_true", help="the paths name two images; no CSV without --save_path")
    options = parser.parse_args()
    show_log()
    from mu.core.compute import pick_device
    from mu.diffusion.image_folder import read_images
    from mu.evaluation.backbones import vgg_features
    from mu.evaluation.metrics.style_loss import style_loss

    first, second, out = options.original_path, options.edited_path, options.save_path
    if options.image:
        pairs = [(first, second)]
    else:
        there = {path.name for path in images(first)}
        pairs = [(first / p.name, p) for p in of_cases(images(second), options.prompts_path) if p.name in there]
        out = out or second / f"{second.resolve().name}_styleloss.csv"
    if not pairs:
        raise DataError(
            f"{first} and {second} have no PNG images with equal names: name the folders of the same prompts"
        )
    if out:
        check_table(out, options.overwrite)
    device = pick_device(options.device)
    features = vgg_features(device) if options.network == "vgg19" else judge(device).feature_maps
    rows = []
    for original, edited in pairs:
        loss = style_loss(read_images([original]), read_images([edited]), features)
        rows.append(
            {
                "name": edited.name,
                "style": float(loss.style),
                "content": float(loss.content),
                "total": float(loss.total),
            }
        )
    if out:
        write_table(out, rows)
    mean = sum(row["total"] for row in rows) / len(rows)
    print(f"style loss ({options.network})  {mean:.4f} of {len(rows)} images{f'  {out}' if out else ''}")


if __name__ == "__main__":
    sys.exit(guarded(main))
