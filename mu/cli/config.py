"""``mu config``"""

from __future__ import annotations

from typing import Annotated

import typer

from mu.core.errors import ConfigError, nearest


def config(
    method: Annotated[str, typer.Argument(help="The method: see `mu methods`.")],
    preset: Annotated[str | None, typer.Option(help="Settings by name in place of the defaults.")] = None,
) -> None:
    """Print a method's settings as YAML, each under what it does.

    Example: mu config spm --preset canvas > neon.yaml
    """
    from mu.algorithms import algorithm

    chosen = algorithm(method)
    presets = {"": chosen.config_class.parse({}), **getattr(chosen, "presets", {})}
    if (preset or "") not in presets:
        raise ConfigError(f"unknown preset {preset!r} of {method}.{nearest(str(preset), [name for name in presets if name])}")
    print(f"# Save as FILE, then: mu erase {method} --config FILE\n{presets[preset or ''].to_yaml()}", end="")
