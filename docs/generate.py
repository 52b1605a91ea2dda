"""Makes the pages that come from the code: ``docs/cli.md`` (every verb's help), ``docs/settings.md`` (every
setting) and ``docs/parity.md`` (what equals what, as the tests measure it).

Where ``make demo`` has run, also the README's image, from the demo's panels.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from mu.algorithms import ALGORITHMS, algorithm

HERE = Path(__file__).parent
PLAIN = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


EQUAL = """# Equal to what

Made by `make docs`: it runs the measurements of `tests/reference/test_parity.py`. Each method, by the preset named, is
compared with tensors that `tests/reference/make_steps.py` computes from the equations of the program or paper
named, without this package: in double precision, on a small network. The programs themselves are not run. The error is
the largest difference as a share of a tensor's largest value. Each test also changes an equation, and then the tensors
differ.

| method | preset | beside | quantity | error | bound of the test |
| --- | --- | --- | --- | --- | --- |"""
DEPART = """
## Departures

How the defaults differ from the programs, and the settings that bring their way back. A method's `released` presets set
those of one program together: `mu methods NAME` lists them.

| method | there | here | switch |
| --- | --- | --- | --- |"""


def help_of(*words: str) -> str:
    command = [sys.executable, "-m", "mu", *words, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=PLAIN).stdout
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def every_verb() -> list[tuple[str, ...]]:
    """Of the program itself, groups before their members."""
    from typer.main import get_command

    from mu.cli import app

    verbs: list[tuple[str, ...]] = []
    for name, command in get_command(app).commands.items():
        verbs.append((name,))
        verbs += [(name, below) for below in getattr(command, "commands", {})]
    return verbs


def command_line(verbs: list[tuple[str, ...]]) -> str:
    pages = [f"## mu {' '.join(words)}\n\n```text\n{help_of(*words)}\n```\n" for words in verbs]
    return "# Command line\n\nMade by `make docs` from the program's own help.\n\n" + "\n".join(pages)


def settings() -> str:
    pages = [f"## {name}\n\n```yaml\n{algorithm(name).config_class.parse({}).to_yaml()}```\n" for name in ALGORITHMS]
    return "# Settings\n\nMade by `make docs`; the same as `mu config METHOD`.\n\n" + "\n".join(pages)


def parity() -> str:
    """The table of `tests.reference.parity`, each error measured now as the tests measure it."""
    sys.path.insert(0, str(HERE.parent))
    from tests.reference.parity import DEPARTURES, ROWS

    lines = [EQUAL]
    for row in ROWS:
        below = math.ceil(math.log10(max(row.error(), 1e-17)))
        lines.append(
            f"| {row.method} | {row.preset} | {row.program} | {row.quantity} | below 1e{below:03d} | {row.bound:g} |"
        )
    lines.append(DEPART)
    for each in DEPARTURES:
        switch = ", ".join(f"`{one}`" for one in each.switch) or "none" + (f": {each.why}" if each.why else "")
        lines.append(f"| {each.method} | {each.there} | {each.here} | {switch} |")
    return "\n".join([*lines, ""])


def demo_image(demo: Path, path: Path) -> None:
    """The demo's panel as one image: a row for each prompt, a column for each state of the bank."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    (panel,) = json.loads((demo / "panels.json").read_text(encoding="utf-8"))
    columns, rows = panel["columns"], panel["rows"]
    figure, grid = plt.subplots(
        len(rows), len(columns), figsize=(1.7 * len(columns) + 2.6, 1.6 * len(rows)), squeeze=False
    )
    for across, row in zip(grid, rows, strict=True):
        for axis, name in zip(across, row["images"], strict=True):
            axis.imshow(plt.imread(demo / name), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        label = row["label"].replace(" image", "\nimage").replace(" in ", "\nin ")
        across[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
    for axis, title in zip(grid[0], columns, strict=True):
        axis.set_title(title.replace(", ", ",\n"), fontsize=10)
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    demo = HERE.parent / "outputs" / "demo"
    if (demo / "panels.json").exists():
        demo_image(demo, HERE / "images" / "demo.png")
    (HERE / "cli.md").write_text(command_line(every_verb()), encoding="utf-8")
    (HERE / "settings.md").write_text(settings(), encoding="utf-8")
    (HERE / "parity.md").write_text(parity(), encoding="utf-8")


if __name__ == "__main__":
    main()
