"""The command line of one algorithm: ``python -m mu.algorithms.<name>.scripts.train --config_path ...``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_args, get_origin

from pydantic import BaseModel
from rich.logging import RichHandler

from mu.core import launch, parallel
from mu.core.algorithm import Algorithm
from mu.core.config import BaseConfig, as_written, fields_of, kind_of
from mu.core.documents import parse_yaml, parse_yaml_written
from mu.core.errors import ConfigErrors, MuError, nearest, one_line, quoted
from mu.core.tracking import KINDS

log = logging.getLogger("mu")


def show_log(verbose: bool = True) -> None:
    """Show log lines of this package on standard error; of several processes, those of the first."""
    logger = logging.getLogger("mu")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    if parallel.follows():
        logger.setLevel(logging.ERROR)
        return
    if not any(isinstance(handler, RichHandler) for handler in logger.handlers):
        from rich.console import Console

        logger.addHandler(RichHandler(console=Console(stderr=True), show_time=False, show_path=False, markup=False))


def guarded(work: Callable[[], Any]) -> int:
    """Run ``work`` and return the exit code: 0, 2 with a one-line error for bad input, or 130 on Ctrl-C.

    A full disk, too little memory and input that is nested too deep are bad input too. A defect keeps its traceback.
    """
    try:
        work()
    except (Exception, KeyboardInterrupt) as error:
        if _is_interrupt(error):
            print("interrupted: finished work is kept; run again with --resume to continue", file=sys.stderr)
            return 130
        if parallel.is_told_elsewhere(error):
            return parallel.LOST
        if (reason := told(error)) is None:
            raise
        for line in error.each if isinstance(error, ConfigErrors) else [reason]:
            print(f"error: {one_line(line)}", file=sys.stderr)
        return 2
    finally:
        parallel.abandon()
    return 0


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused it: in the import of a library that arrives as an ImportError, from which others come."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (error.__context__ if error.__suppress_context__ else None)  # "from None" hides one
    return any(isinstance(each, KeyboardInterrupt) for each in chain)


def told(error: BaseException) -> str | None:
    """What a user reads of ``error``; None for a defect of this package."""
    match error:
        case MuError():
            return str(error)
        case OSError(errno=None):
            return str(error) or f"reading or writing failed ({type(error).__name__})"
        case OSError():
            return f"{error.strerror or error}: {error.filename or 'writing'}"
        case RecursionError():
            return "the input is nested too deep: make it flatter"
        case MemoryError():
            return "not enough memory: ask for smaller images, fewer at once, or a smaller model"
        case RuntimeError() if _is_out_of_memory(error):
            return f"not enough memory: ask for smaller images, fewer at once, or a smaller model ({error})"
    return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, which has several errors for it, could not get the memory it asked for."""
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return type(error).__name__ == "OutOfMemoryError" or any(each in str(error) for each in words)


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one line. For a flag without its section it names the whole one."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            flag, known = rest[0].partition("=")[0], list(self._option_string_actions)
            whole = [name for name in known if name.endswith(f".{flag.lstrip('-')}")]
            hint = f" Did you mean {' or '.join(map(quoted, whole))}?" if whole else nearest(flag, known)
            self.error(
                f"unknown option {quoted(flag)}.{hint}" if flag[:1] == "-" else f"{quoted(flag)} belongs to no option"
            )
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message.rstrip('.'))}; see {self.prog} --help\n")


class WithoutEffect(argparse.Action):
    """A flag that is accepted and has no effect. Its help must be ``has no effect: REASON``.

    Notes of the given ones gather in ``options.without_effect``, for `tell` or a run's log.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, help: str, **options: Any):
        self.reason = help.partition("has no effect: ")[2]
        if not self.reason:
            raise ValueError(f"{option_strings[0]}: the help must be 'has no effect: REASON'")
        super().__init__(option_strings, dest, help=help, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        note_flag(namespace, f"{option_string} has no effect: {self.reason}")


def note_flag(options: argparse.Namespace, note: str) -> None:
    """Add a note to ``options.without_effect``."""
    options.without_effect = [*without_effect(options), note]


def without_effect(options: argparse.Namespace) -> list[str]:
    """The notes on given flags that have no effect, one line each."""
    return list(getattr(options, "without_effect", []))


def tell(options: argparse.Namespace) -> None:
    """Log, as warnings, which of the given flags have no effect; for programs that make no run."""
    for note in without_effect(options):
        log.warning(note)


def parser(algorithm: type[Algorithm]) -> argparse.ArgumentParser:
    """A parser with one flag for each setting; nested settings have a dot (``--train.iterations 2``)."""
    build = Parser(
        prog=f"python -m {algorithm.__module__.rpartition('.')[0]}.scripts.train",
        description=f"{(algorithm.__doc__ or algorithm.name).strip().splitlines()[0]} Flags override the YAML file's "
        "keys.",
        epilog="example: --config_path configs/train_config.yaml --template_name Abstractionism "
        "--train.iterations 3000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    build.add_argument("--config_path", metavar="YAML", help="settings file; default: the default settings")
    build.add_argument("--resume", action="store_true", help="continue an interrupted run")
    build.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    build.add_argument("--track", choices=KINDS, help="also send losses to this tracker, if installed")
    _add_flags(build, algorithm.config_class)
    return build


def _add_flags(build: argparse.ArgumentParser, config: type[BaseModel], prefix: str = "") -> None:
    for name, field in fields_of(config).items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            _add_flags(build, kind, f"{prefix}{name}.")
            continue
        help_text = " ".join((field.description or "").split()).replace("%", "%%")
        flag: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "dest": prefix + name,
            "help": help_text,
            "metavar": name.upper(),
        }
        if kind in (bool, bool | None):
            flag |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        build.add_argument(f"--{prefix}{name}", **flag)


def main(algorithm: type[Algorithm], arguments: Sequence[str] | None = None) -> None:
    """Read the YAML file, apply the flags, run, and exit with the code of `guarded`."""
    options = vars(parser(algorithm).parse_args(arguments))
    path, resume, overwrite, track = (options.pop(key) for key in ("config_path", "resume", "overwrite", "track"))
    code = 0

    def work() -> None:
        nonlocal code
        chosen = algorithm(path, **parsed(algorithm.config_class, options))
        show_log(getattr(chosen.config, "verbose", True))
        if arguments is None and (devices := launch.several(chosen.config)):
            code = launch.launched(devices)
            return
        found = chosen.run(resume=resume, overwrite=overwrite, track=track)
        if not parallel.leave():
            print(getattr(chosen, "final_file", found.run.edit))

    sys.exit(guarded(work) or code)


def parsed(config: type[BaseConfig], options: dict[str, str]) -> dict[str, Any]:
    """Parse flag values as YAML (``[a, b]``, ``1e-4``, ``null``), except for settings that are text."""
    values: dict[str, Any] = {}
    for name, text in options.items():
        kind, what = kind_of(config, name), f"{name}: {quoted(text)}"
        if _is_text(kind):
            values[name] = text
        else:
            values[name] = as_written(kind, parse_yaml(text, what), parse_yaml_written(text, what))
    return values


def _is_text(kind: Any) -> bool:
    kinds = (kind, *get_args(kind))
    return any(isinstance(each, type) and issubclass(each, str) for each in kinds) and get_origin(kind) not in (
        list,
        dict,
    )
