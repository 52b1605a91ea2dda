"""``mu config``"""

from __future__ import annotations

from typing import Annotated

import typer


def config(
    method: Annotated[str, typer.Argument(help="The method: see `mu methods`.")],
    preset: Annotated[str | None, typer.Option(help="Settings by name in place of the defaults.")] = None,
) -> None:
    """Print a method's settings as YAML, each under what it does.

    Example: mu config spm --preset canvas > neon.yaml
    """
    from mu.algorithms import algorithm

    chosen = algorithm(method)
    settings = chosen.preset(preset) if preset else chosen.config_class.parse({})
    print(f"# Save as FILE, then: mu erase {method} --config FILE\n{settings.to_yaml()}", end="")
