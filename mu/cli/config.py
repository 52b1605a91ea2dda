"""``mu config``: print a method's settings."""

from __future__ import annotations

from typing import Annotated

import typer


def config(
    method: Annotated[str, typer.Argument(help="The method: see `mu methods`.")],
    preset: Annotated[str | None, typer.Option(help="A preset to print. Default: the method's defaults.")] = None,
) -> None:
    """Print a method's settings as YAML, each under its description.

    Example: mu config spm --preset canvas > neon.yaml
    """
    from mu import algorithms

    chosen = algorithms.method(method)
    settings = chosen.preset(preset) if preset else chosen.config_class.parse({})
    print(f"# Save as FILE, then: mu erase {method} --config FILE\n{settings.to_yaml()}", end="")
