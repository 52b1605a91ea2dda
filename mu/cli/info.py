"""``mu info``: describe an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from mu.cli.options import Json, check_places


def info(
    edit: Annotated[str, typer.Argument(metavar="EDIT|RUN", help="An edit file or a run folder.")], json: Json = False
) -> None:
    """Print an edit's concepts, method, base model, gate and size; as JSON, also all its settings.

    Example: mu info outputs/neon/edit.safetensors --json
    """
    from mu.cli.output import print_json, print_table

    check_places(edits=[edit])
    from mu.edits.files import open_edit
    from mu.edits.gates import gate_to_json

    opened = open_edit(edit)
    tensors = opened.tensors().values()
    sizes = {
        "parameters": len(opened.parameters),
        "numbers": sum(tensor.numel() for tensor in tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
    }
    if json:
        print_json({**opened.info.to_json(), "kind": type(opened).__name__, **sizes, "names": opened.parameters})
        return
    about = opened.info
    facts = {
        "concepts": ", ".join(about.concepts) or "not named",
        "method": about.method,
        "kind": type(opened).__name__,
        "base": about.base or "not noted",
        "loaded with": ", ".join(f"{name} {value}" for name, value in about.loading.items()) or "not noted",
        "fingerprint": about.fingerprint or "not noted",
        "gate": ", ".join(f"{name} {value}" for name, value in gate_to_json(about.gate).items()) or "none",
        "protects": _few(about.protects),
        "retains up to a leak": _few(about.spares),
        "found": ", ".join(f"{name} {value}" for name, value in about.found.items()) or "nothing noted",
        "seed": "not noted" if about.seed is None else str(about.seed),
        "made with": ", ".join(f"{name} {version}" for name, version in about.versions.items()),
        **{name: f"{count:,}" for name, count in sizes.items()},
    }
    print_table(["", str(edit)], facts.items())


def _few(prompts: Sequence[str], shown: int = 6) -> str:
    more = [f"and {len(prompts) - shown} more (--json lists all)"] if len(prompts) > shown else []
    return ", ".join([*map(repr, prompts[:shown]), *more]) or "none"
