"""The tables of benchmarks/canvas_separable.py: from what it measured to Markdown. No benchmark itself."""

from __future__ import annotations

from typing import Any

from _shared import markdown, mean, percent


def tables(result: dict[str, Any]) -> str:
    """A chapter for each part that ``result`` holds, and what failed."""
    made = {
        "single": single_table,
        "phrasings": phrasings_table,
        "multi": multi_table,
        "capacity": capacity_table,
        "scenes": scene_tables,
    }
    parts = [f"## {part}\n\n{table(result[part])}" for part, table in made.items() if result.get(part)]
    failed = [row for part in made for row in result.get(part, []) if "failed" in row]
    if failed:
        parts.append(
            "## failed\n\n" + "".join(f"- {row['method']}, {row['concept']}: {row['failed']}\n" for row in failed)
        )
    return "\n".join(parts)


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def first_of(shares: dict[str, float]) -> str:
    return next((f"{name} {percent(share)}" for name, share in shares.items()), "")


def single_table(rows: list[dict[str, Any]]) -> str:
    done = [row for row in rows if "edited" in row]
    names = ("UA", "IRA", "CRA")
    lines = []
    for method in dict.fromkeys(row["method"] for row in done):
        for kind in ("style", "object"):
            of = [row for row in done if (row["method"], row["kind"]) == (method, kind)]
            if of:
                lines.append(
                    [
                        method,
                        f"{len(of)} {kind}s",
                        *(percent(mean([row["edited"][name] for row in of])) for name in names),
                        percent(mean([row["UA, other phrasings"]["edited"] for row in of])),
                        f"{percent(mean([r['edited']['unasked'] for r in of]))} "
                        f"({percent(mean([r['base']['unasked'] for r in of]))})",
                        percent(max(r["edited"]["unasked"] - r["base"]["unasked"] for r in of)),
                        number(mean([row["edited"]["neutral distance"] for row in of])),
                        f"{number(mean([r['edited']['Fréchet distance'] for r in of]))} "
                        f"({number(mean([r['base']['Fréchet distance'] for r in of]))})",
                        *(number(mean([row[f"LPIPS, {which}"] for row in of])) for which in ("erased", "retained")),
                        number(mean([row["seconds"] for row in of]), 0),
                        number(max([r["peak_memory_MiB"] or 0 for r in of]), 0),
                        number(mean([row["bytes"] for row in of]) / 2**20, 2),
                    ]
                )
    what = (
        "UA, other phrasings",
        "seen unasked (base)",
        "largest rise",
        "neutral distance",
        "Fréchet distance (base)",
        "LPIPS-like, erased",
        "retained",
        "seconds",
        "peak MiB",
        "MiB",
    )
    concepts = list(dict.fromkeys(row["concept"] for row in done))
    cells = {(row["method"], row["concept"]): row["edited"] for row in done}
    methods = list(dict.fromkeys(row["method"] for row in done))
    each = [
        [
            concept,
            *(
                " / ".join(percent(cells[m, concept][name]) for name in names) if (m, concept) in cells else ""
                for m in methods
            ),
        ]
        for concept in concepts
    ]
    replaced = {(row["method"], row["concept"]): row["instead"] for row in done}
    instead = [[concept, *(first_of(replaced.get((m, concept), {})) for m in methods)] for concept in concepts]
    return (
        markdown(["method", "concepts", *names, *what], lines)
        + "\nUA / IRA / CRA of each:\n\n"
        + markdown(["erased", *methods], each)
        + "\nWhat came instead, the most frequent answer on images that ask for the concept:\n\n"
        + markdown(["erased", *methods], instead)
    )


def phrasings_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows if "edited" in row):
        for kind in ("style", "object"):
            of = [row for row in rows if (row["method"], row.get("kind")) == (method, kind) and "edited" in row]
            if of:
                lines.append(
                    [
                        method,
                        f"{len(of)} {kind}s",
                        *(percent(mean([row[name] for row in of])) for name in ("edited", "base")),
                    ]
                )
    return markdown(["method", "concepts", "kept in phrasings that nobody trained on or protected", "base"], lines)


def multi_table(rows: list[dict[str, Any]]) -> str:
    header = ["method", "found", "UA", "kept (base)", "beside (base)", "LPIPS-like, kept", "seconds", "MiB"]
    lines, back = [], []
    for row in [row for row in rows if "edited" in row]:
        edited, base = row["edited"], row["base"]
        lines.append(
            [
                row["method"],
                row["way"],
                percent(edited["UA"]),
                *(f"{percent(edited[n])} ({percent(base[n])})" for n in ("kept", "beside")),
                number(row["LPIPS, kept"]),
                number(row.get("seconds"), 0),
                number(row["bytes"] / 2**20, 2),
            ]
        )
        if row["restored"]:
            back.append([row["method"], row["way"], *back_cells(row["restored"])])
    return markdown(header, lines) + "\nOne given back:\n\n" + markdown(["method", "found", *BACK], back)


BACK = ["its bare word", "while erased", "in sentences", "while erased", "the others"]


def back_cells(found: dict[str, dict[str, float]]) -> list[str]:
    """Largest and mean difference in units of 1/255."""
    names = ("bare", "bare, while erased", "sentences", "sentences, while erased", "others")
    return [f"{found[name]['max']} / {found[name]['mean']:.2f}" if name in found else "" for name in names]


def capacity_table(rows: list[dict[str, Any]]) -> str:
    header = [
        "concepts",
        "UA",
        "kept (base)",
        "beside (base)",
        "directions left",
        "left out",
        "erasability",
        "seconds",
        *BACK,
    ]
    lines = []
    for row in [row for row in rows if "edited" in row]:
        edited, base = row["edited"], row["base"]
        lines.append(
            [
                str(row["concepts"]),
                percent(edited["UA"]),
                *(
                    "" if edited[n] is None else f"{percent(edited[n])} ({percent(base[n])})"
                    for n in ("kept", "beside")
                ),
                str(row["free"]),
                str(row["left out"]),
                number(row["erasability"], 2),
                number(row["seconds"], 0),
                *back_cells(row["restored"]),
            ]
        )
    return markdown(header, lines)


def scene_tables(rows: list[dict[str, Any]]) -> str:
    """Accuracy and largest difference from the base of each concept; bold what is erased, * what is spared by all that
    is on."""
    made = []
    for row in [row for row in rows if "times" in row]:
        lines = []
        for time_, state in row["times"].items():
            cells = []
            for cell in state["cells"].values():
                told = f"{percent(cell['accuracy'])}, {cell['max']}" if "accuracy" in cell else str(cell["max"])
                cells.append(
                    f"**{told}**" if cell["state"] == "forgotten" else f"{told}{'*' if cell['spared'] else ''}"
                )
            groups = [
                [c for c in state["cells"].values() if c["state"] == g] for g in ("forgotten", "recovered", "regular")
            ]
            means = [percent(mean([cell["accuracy"] for cell in of])) for of in groups]
            lines.append([time_, *cells, *means, str(len(state["broken"]))])
        header = ["", *next(iter(row["times"].values()))["cells"], "forgotten", "recovered", "regular", "broken"]
        made.append(f"Scene {row['scene']}, {row['kind']}s:\n\n{markdown(header, lines)}")
    return "\n".join(made)
