"""Exit codes of ``mu``: 0; 2 with one line for bad input; 130 on Ctrl-C. A bug in mu keeps its traceback."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mu.core.errors import ConfigError

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for unknown options and missing arguments. Its module differs between versions of typer."""


class Program(TyperGroup):
    """Run every verb under `mu.core.program.guarded`, like each method's own script."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        try:
            code = super().main(*args, **{**options, "standalone_mode": False}) or 0
            if code == 130:
                raise KeyboardInterrupt
            print(end="", flush=True)
        except UsageError as error:
            code = _told(ConfigError(_usage(error)))
        except typer.Abort:
            code = _told(KeyboardInterrupt())
        except BrokenPipeError:  # for example `mu methods | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except (Exception, KeyboardInterrupt) as error:
            code = _told(error)
        sys.exit(code)


def _told(trouble: BaseException) -> int:
    from mu.core.program import guarded  # imports the settings library, so only on an error

    def again() -> NoReturn:
        raise trouble

    return guarded(again)


def _usage(error: Any) -> str:
    message = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    return f"{message}. See: {error.ctx.command_path} --help" if error.ctx else message


def _version(wanted: bool) -> None:
    if wanted:
        import mu
        from mu.__main__ import clash

        print(f"mu {mu.__version__}")
        if told := clash():
            print(f"warning: {told}", file=sys.stderr)
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Erase a concept from an image model, retain the rest, restore it exactly, and show evidence for all three.

    Example: mu demo
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
