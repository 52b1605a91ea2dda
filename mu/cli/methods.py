"""``mu methods``: list the methods and their presets."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from mu.cli.options import Json


def methods(
    method: Annotated[str | None, typer.Argument(help="A method, to list its presets.")] = None, json: Json = False
) -> None:
    """List the methods with their papers, or the presets of one method.

    Example: mu methods spm
    """
    from mu import algorithms
    from mu.cli.output import print_json, print_table
    from mu.core.algorithm import citation

    if method:
        presets = algorithms.method(method).presets.descriptions()
        if json:
            print_json([{"preset": name, "for": what} for name, what in presets.items()])
        else:
            print_table(["preset", "for"], presets.items(), title=f"mu erase {method} --preset PRESET")
        return
    found = []
    for name in algorithms.ALGORITHMS:
        known = algorithms.method(name)
        bibtex = citation(known)
        found.append(
            {"name": name, "summary": known.summary(), "title": _field(bibtex, "title"), "year": _field(bibtex, "year")}
        )
    if json:
        print_json(found)
    else:
        print_table(["name", "what it does", "paper", "year"], [list(row.values()) for row in found])


def _field(bibtex: str, name: str) -> str:
    """Return the field ``name`` of a BibTeX entry. Each field starts a line; its value may span several."""
    match = re.search(
        rf"^\s*{name}\s*=\s*[{{\"]?(.*?)[}}\"]?,?\s*$(?=\s*(?:\w+\s*=|\}}))", bibtex, re.MULTILINE | re.DOTALL
    )
    return re.sub(r"[{}]", "", " ".join(match[1].split())) if match else ""
