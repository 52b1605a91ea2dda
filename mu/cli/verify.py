"""``mu verify``: was anything in a run changed since it was made?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import Json


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A copy of manifest.json that was filed elsewhere. Default: the run's own."),
    ] = None,
    json: Json = False,
) -> None:
    """Check that a run's edit, settings, scores, images and log are those that were made. Needs no model.

    Exit code 1 if any part was changed. The digests are not signed: keep a copy of manifest.json elsewhere to detect
    forgery.

    Example: mu verify outputs/neon
    Example: mu verify outputs/neon --manifest filed/manifest.json
    """
    from mu.cli.output import print_json, print_table
    from mu.core.errors import DataError
    from mu.core.evidence import CHANGED, findings
    from mu.core.manifest import manifest_finding
    from mu.core.run import RunDirectory

    chosen = RunDirectory(run)
    found = findings(chosen)
    if filed := manifest_finding(chosen, manifest):
        found.append(filed)
    if not found:
        raise DataError(f"{run} holds nothing to verify: name a run's folder, with its edit.safetensors")
    if json:
        print_json([finding._asdict() for finding in found])
    else:
        print_table(["part", "state", "meaning"], [list(finding) for finding in found])
    if any(finding.state == CHANGED for finding in found):
        raise typer.Exit(1)
