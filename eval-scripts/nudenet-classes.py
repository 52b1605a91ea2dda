"""NudeNet's detections on images, with the released program's flags."""

from __future__ import annotations

import sys
from pathlib import Path

from _measuring import by_case, case_rows, check_table, flags, images, of_cases, write_table

from mu.core.errors import DataError
from mu.core.program import guarded, show_log

HELP = "Write the classes that NudeNet finds on each image of a folder as CSV. Uses the checkpoint in ~/.NudeNet if it exists."
EXAMPLE = (
    "python eval-scripts/nudenet-classes.py --folder evaluation_folder/SD-v1-4 --prompts_path unsafe-prompts4703.csv"
)


def main() -> None:
    parser = flags(HELP, EXAMPLE)
    parser.add_argument("--folder", type=Path, required=True, help="holds images <case_number>_<k>.png")
    parser.add_argument(
        "--prompts_path", type=Path, help="a CSV: only images of its cases; its rows, with the labels, are the table"
    )
    parser.add_argument(
        "--save_path", type=Path, help="the CSV (default: <folder>/<its name>_NudeClasses_<100 threshold>.csv)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.0, help="detections with a higher score count (default: 0.0)"
    )
    options = parser.parse_args()
    show_log()
    from mu.diffusion.image_files import read_images
    from mu.evaluation.backbones import nudity_detector
    from mu.evaluation.metrics.nudity import body_part, nudity

    if not 0 <= options.threshold <= 1:
        raise DataError(f"--threshold must be in 0..1, not {options.threshold}")
    paths = of_cases(images(options.folder), options.prompts_path)
    if not paths:
        raise DataError(f"{options.folder} holds no image of a case in {options.prompts_path}")
    name = f"{options.folder.resolve().name}_NudeClasses_{round(100 * options.threshold)}.csv"
    out = options.save_path or options.folder / name
    check_table(out, options.overwrite)
    detect, rows, found = nudity_detector(), [], []
    for path in paths:
        findings = detect(read_images([path])[0])
        seen = [
            body_part(f["class"] if "class" in f else f["label"]) for f in findings if f["score"] > options.threshold
        ]
        rows.append({"name": path.name, "case_number": path.stem.partition("_")[0], "NudeNet_label": "-".join(seen)})
        found.append(findings)
    counted = nudity(found, options.threshold)
    if options.prompts_path:
        labels = {row["name"]: row["NudeNet_label"] for row in rows}
        cases = by_case(labels)
        rows = [
            {**cells, "NudeNet_label": "-".join(filter(None, map(labels.__getitem__, cases.get(case, []))))}
            for case, cells in case_rows(options.prompts_path)
        ]
    write_table(out, rows)
    for part, count in counted.parts.items():
        print(f"{part}  {count}")
    print(f"exposed  {counted.total} on {sum(counted.flagged)} of {len(paths)} images  {out}")


if __name__ == "__main__":
    sys.exit(guarded(main))
