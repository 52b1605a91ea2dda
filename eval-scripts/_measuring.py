"""Code that the measuring programs share: flags, image folders, and the output table."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mu.core.compute import there
from mu.core.errors import DataError, OutputError
from mu.core.files import check_writing, write_text
from mu.core.program import Parser


def flags(help_: str, example: str, network: str = "") -> argparse.ArgumentParser:
    """Make the parser. With ``network``, add the flags that choose the feature network and its device."""
    parser = Parser(description=help_, epilog=f"example: {example}")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing table")
    if network:
        parser.add_argument(
            "--network",
            choices=(network, "canvas-judge"),
            default=network,
            help="canvas-judge: an offline substitute with its own scale",
        )
        parser.add_argument("--device", type=there, default="cuda:0", help="default: cuda:0, or the CPU without a GPU")
    return parser


def images(folder: Path) -> list[Path]:
    """Return the PNG files of ``folder``, sorted. Raises `DataError` if it has none."""
    found = sorted(folder.glob("*.png"))
    if not found:
        raise DataError(f"{folder} holds no PNG images: name a folder that does")
    return found


def folder_pairs(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    """The two folders by the second's name, or, if the first holds no images, each pair of equally named subfolders."""
    both = [{path.name for path in folder.glob("*") if path.is_dir()} for folder in (first, second)]
    names = sorted(both[0] & both[1])
    if names and not any(first.glob("*.png")):
        return {name: (first / name, second / name) for name in names}
    return {second.name: (first, second)}


def of_cases(paths: Sequence[Path], prompts: Path | None) -> list[Path]:
    """Return the images ``<case_number>_<k>.png`` whose case is in the CSV ``prompts``; without it, all."""
    from mu.data.prompts import read_prompts

    if prompts is None:
        return list(paths)
    cases = {str(case.case_number) for case in read_prompts(prompts)}
    return [path for path in paths if path.stem.partition("_")[0] in cases]


def case_rows(prompts: Path) -> list[tuple[str, dict[str, str]]]:
    """The case number of each prompt of a list, with the cells of its row by column, as the released tables begin."""
    from mu.core.documents import parse_csv
    from mu.core.files import read_text
    from mu.data.prompts import read_prompts

    cases = read_prompts(prompts)
    if prompts.suffix.lower() != ".csv":
        return [
            (str(each.case_number), {"case_number": str(each.case_number), "prompt": each.prompt}) for each in cases
        ]
    header, rows = parse_csv(read_text(prompts, "the prompt file"), str(prompts))
    return [
        (str(case.case_number), {"case_number": str(case.case_number), **dict(zip(header, cells, strict=False))})
        for case, (_, cells) in zip(cases, rows, strict=True)
    ]


def by_case(names: Iterable[str]) -> dict[str, list[str]]:
    """File names ``<case_number>_<k>.png`` by case number, in order."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(name.partition("_")[0].removesuffix(".png"), []).append(name)
    return found


def judge(device: Any) -> Any:
    """Open the classifier that ships with the package."""
    from mu.models import EMBEDDED
    from mu.models.judge import Judge

    return Judge.open(EMBEDDED["canvas-judge"], device)


def check_table(path: Path, overwrite: bool) -> None:
    """Raise `OutputError` if `write_table` could not write. Call it before the work."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already: choose another --save_path, or pass --overwrite")
    check_writing(path)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())
