"""``mu methods``: list the methods."""

from __future__ import annotations

import re

from mu.cli.options import Json


def methods(json: Json = False) -> None:
    """List the methods with their papers.

    Example: mu methods --json
    """
    from mu.algorithms import ALGORITHMS, algorithm
    from mu.cli.output import print_json, print_table
    from mu.core.algorithm import citation

    found = []
    for name in ALGORITHMS:
        chosen = algorithm(name)
        bibtex = citation(chosen)
        summary = (chosen.__doc__ or "").strip().partition("\n")[0]
        found.append(
            {"name": name, "summary": summary, "title": _field(bibtex, "title"), "year": _field(bibtex, "year")}
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
