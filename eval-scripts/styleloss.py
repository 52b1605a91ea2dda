"""Style loss between images of the base and of the edited model, with the released program's flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from _measuring import by_case, case_rows, check_table, flags, images, judge, of_cases, write_table

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
        "--prompts_path",
        "--promtps_path",
        "--csv_path",
        type=Path,
        help="a CSV: only images <case_number>_<k>.png of its cases; its rows, with their mean losses, are the table",
    )
    parser.add_argument(
        "--save_path", type=Path, help="a CSV, or the folder of <its name>_styleloss.csv (default: edited_path)"
    )
    parser.add_argument("--image", action="store_true", help="the paths name two images; no CSV without --save_path")
    options = parser.parse_args()
    show_log()
    from mu.core.compute import pick_device
    from mu.diffusion.image_files import read_images
    from mu.evaluation.backbones import vgg_features
    from mu.evaluation.metrics.style_loss import style_loss

    first, second, out = options.original_path, options.edited_path, options.save_path
    if options.image:
        pairs = [(first, second)]
    else:
        there = {path.name for path in images(first)}
        pairs = [(first / p.name, p) for p in of_cases(images(second), options.prompts_path) if p.name in there]
        name = f"{second.resolve().name}_styleloss.csv"
        out = second / name if out is None else out if out.suffix == ".csv" else out / name
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
        rows.append([edited.name, float(loss.style), float(loss.content), float(loss.total)])
    if out:
        write_table(out, _table(rows, None if options.image else options.prompts_path))
    mean = sum(row[-1] for row in rows) / len(rows)
    print(f"style loss ({options.network})  {mean:.4f} of {len(rows)} images{f'  {out}' if out else ''}")


def _table(rows: Sequence[Sequence[Any]], prompts: Path | None) -> list[dict[str, Any]]:
    """The released tables: a row for each image, or the rows of a list, each with the means of its case's images."""
    names = ("style_loss", "content_loss", "total_loss")
    if prompts is None:
        titles = ("filename", *("_".join(map(str.capitalize, name.split("_"))) for name in names))
        return [dict(zip(titles, row, strict=True)) for row in rows]
    losses, found = {name: values for name, *values in rows}, []
    cases = by_case(losses)
    for case, cells in case_rows(prompts):
        each = [losses[name] for name in cases.get(case, ())]
        means = [fmean(column) for column in zip(*each, strict=True)] or [""] * len(names)
        found.append({**cells, **dict(zip(names, means, strict=True))})
    return found


if __name__ == "__main__":
    sys.exit(guarded(main))
