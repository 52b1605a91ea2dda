"""What the measuring programs share: their flags, folders of images, and the table that they leave."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mu.core.compute import there
from mu.core.errors import DataError, OutputError
from mu.core.files import check_writing, write_text


def flags(help_: str, example: str, network: str = "") -> argparse.ArgumentParser:
    """With ``network``, also what the images are looked at through."""
    parser = argparse.ArgumentParser(description=help_, epilog=f"example: {example}")
    parser.add_argument("--overwrite", action="store_true", help="replace a table that is there")
    if network:
        parser.add_argument(
            "--network", choices=(network, "canvas-judge"), default=network, help="canvas-judge: a stand-in of its own, offline"
        )
        parser.add_argument("--device", type=there, default="cuda:0", help="default: cuda:0, and the CPU where there is none")
    return parser


def images(folder: Path) -> list[Path]:
    """The PNG files of ``folder``, sorted; `DataError` where there are none."""
    found = sorted(folder.glob("*.png"))
    if not found:
        raise DataError(f"{folder} holds no PNG pictures")
    return found


def of_cases(paths: Sequence[Path], prompts: Path | None) -> list[Path]:
    """Those named ``<case_number>_<k>.png`` of a case in the CSV ``prompts``, or all."""
    from mu.data.prompts import read_prompts

    if prompts is None:
        return list(paths)
    cases = {str(case.case_number) for case in read_prompts(prompts)}
    return [path for path in paths if path.stem.partition("_")[0] in cases]


def judge(device: Any) -> Any:
    """The classifier that ships with the package."""
    from mu.models import EMBEDDED
    from mu.models.judge import Judge

    return Judge.open(EMBEDDED["canvas-judge"], device)


def check_table(path: Path, overwrite: bool) -> None:
    """`OutputError` where `write_table` would not write: to be asked before the work."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already: choose another --save_path, or pass --overwrite")
    check_writing(path)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())
