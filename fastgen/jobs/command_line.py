"""The command line of a recipe: a config file, overrides or options, and errors in one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._core.launcher import watch_launcher
from .._core.messages import brief
from .._core.processes import leave, leave_together
from .._core.streams import lasting_streams
from .._core.yaml_files import parse_yaml
from ..config.base import OldSpelling
from ..config.files import C, describe, load_config
from ..records.folder import run_folder
from ..training.launching import is_first_process
from ..training.signals import stopped_by_signals

__all__ = [
    "CommandLine",
    "column_names",
    "parse_command_line",
    "parse_options",
    "parse_path_and_options",
    "parse_paths_and_options",
    "user_errors",
    "whole_number",
    "yes_or_no",
]

_POWER = re.compile(r"\d+(\.\d*)?[eE]\+?\d{1,2}")


@dataclass(frozen=True)
class CommandLine:
    """A recipe's config, and whether it is only to be planned."""

    config: Any
    dry_run: bool


def parse_command_line(
    schema: type[C], *, default: Path, doc: str | None, argv: list[str] | None = None
) -> CommandLine:
    """Read ``[file.yaml] [key.sub=value ...] [--resume] [--dry-run] [--help]`` into a config.

    Args:
        schema: pydantic class of the config.
        default: YAML file used when the command line names none.
        doc: the recipe's docstring, first part of ``--help``.
        argv: arguments; None means ``sys.argv[1:]``.

    Raises:
        ValueError: unknown key (with the nearest known one), wrong type, unreadable file.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(f"{(doc or '').strip()}\n\nKeys (default) meaning:\n{describe(schema)}")
        raise SystemExit(0)
    flags = {argument for argument in argv if argument.startswith("-")}
    if unknown := flags - {"--resume", "--dry-run"}:
        raise ValueError(
            f"unknown option {sorted(unknown)[0]}, expected --resume, --dry-run or --help"
        )
    words = [argument for argument in argv if argument not in flags]
    overrides = [word for word in words if "=" in word]
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise ValueError(f"expected one config file, got {files}; overrides are written key=value")
    if "--resume" in flags:
        overrides.append("resume=true")
    path = Path(files[0]) if files else default
    config = load_config(schema, path, overrides)
    run_folder(config)  # refused here also in a dry run, which makes none
    return CommandLine(config, "--dry-run" in flags)


def parse_options(arguments: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """The values of ``key=value`` arguments by key.

    Raises:
        ValueError: a key that is not among those known.
    """
    given = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        given[key] = value
    if unknown := given.keys() - set(known):
        raise ValueError(
            f"unknown option {sorted(unknown)[0]!r}, expected one of: {', '.join(known)}"
        )
    return given


def parse_path_and_options(
    doc: str | None, known: Sequence[str], arguments: Sequence[str] | None = None
) -> tuple[str, dict[str, str]]:
    """Read ``PATH [key=value ...] [--help]``: the path, and the values by key. ``--key value`` is
    ``key=value``, too.

    Without a path, or asked for help, the docstring is printed and the process ends.

    Args:
        doc: the docstring of the recipe or command.
        known: keys.
        arguments: None means ``sys.argv[1:]``.

    Raises:
        ValueError: a key that is not among those known.
    """
    arguments = _or_help(doc, arguments)
    return arguments[0], parse_options(_with_equals(arguments[1:]), known)


def parse_paths_and_options(
    doc: str | None, known: Sequence[str], arguments: Sequence[str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Read ``PATH [PATH ...] [key=value ...] [--help]``, as `parse_path_and_options` does. Paths
    come first, and the others of them have no "=".

    Raises:
        ValueError: a key that is not among those known.
    """
    first, *rest = _or_help(doc, arguments)
    spelt = _with_equals(rest)
    count = next((i for i, word in enumerate(spelt) if "=" in word), len(spelt))
    return [first, *spelt[:count]], parse_options(spelt[count:], known)


def _or_help(doc: str | None, arguments: Sequence[str] | None) -> Sequence[str]:
    """The arguments; the docstring and the end of the process for those that name no path."""
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = "--help" in arguments
    if asked or not arguments or arguments[0].startswith("-"):
        print(doc)
        raise SystemExit(0 if asked else 2)
    return arguments


def _with_equals(arguments: Sequence[str]) -> list[str]:
    """Arguments in which ``--key value`` and ``--key=value`` are spelt ``key=value``."""
    spelt = []
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("--") and "=" not in argument:
            spelt.append(f"{argument[2:]}={next(rest, '')}")
        else:
            spelt.append(argument.removeprefix("--"))
    return spelt


def column_names(options: dict[str, str], key: str) -> list[str] | None:
    """The names that an option holds, `a,b` or, as in a config, `[a, b]`; None where it has none.

    Raises:
        ValueError: something else than names.
    """
    if key not in options:
        return None
    text = options[key]
    names: Any = text.split(",")
    if text.startswith("["):
        names = parse_yaml(text, key)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"expected {key} as names, such as {key}=a,b or {key}='[a, b]', got {text!r}"
        )
    return names


def whole_number(options: dict[str, str], key: str, most: int | None = None) -> int:
    """The number that an option holds, such as 16 or 1e3; ValueError for what is none, or more than
    `most`."""
    text = options[key]
    number = text if text.isdecimal() and text.isascii() and len(text) <= 30 else None
    if number is None and _POWER.fullmatch(text) and float(text).is_integer():
        number = float(text)
    if number is None:
        raise ValueError(f"expected {key} as a whole number, got {brief(text)}")
    if most is not None and int(number) > most:
        raise ValueError(f"expected {key} <= {most}, got {brief(text)}")
    return int(number)


def yes_or_no(options: dict[str, str], key: str) -> bool:
    """What an option says; ValueError for anything but true and false."""
    if options[key] not in ("true", "false"):
        raise ValueError(f"expected {key} as true or false, got {options[key]!r}")
    return options[key] == "true"


@contextlib.contextmanager
def user_errors(*, resumable: bool = False) -> Iterator[None]:
    """Turn errors that a user can cause into one line on stderr and exit code 2. Other errors keep
    their traceback.

    Ctrl-C is one line and exit code 130, SIGTERM one line and 143, SIGHUP one line and 129. A
    launcher that goes counts as SIGTERM. A stream that can't be written to changes nothing.

    One of several processes ends with the block, also where nothing went wrong (see
    `fastgen._core.processes.leave_together`).

    Args:
        resumable: whether --resume goes on after Ctrl-C, which the line then says.
    """
    with lasting_streams(), _errors_in_one_line(resumable=resumable):
        with stopped_by_signals(), _notes_in_one_line():
            watch_launcher()
            yield
            leave_together()


_OF_USERS = (ValueError, TypeError, OSError, FloatingPointError, ImportError, MemoryError)


@contextlib.contextmanager
def _errors_in_one_line(*, resumable: bool) -> Iterator[None]:
    """Turn errors and signals into a line on stderr and an exit code."""
    try:
        yield
    except _OF_USERS as error:
        if os.environ.get("FASTGEN_TRACEBACK"):
            raise
        message = " ".join(str(error).split())
        print(f"error: {message} (FASTGEN_TRACEBACK=1 shows where)", file=sys.stderr)
        leave(2)
    except KeyboardInterrupt as interrupt:
        said = str(interrupt)
        if not said and resumable:
            said = "what is done is in the run folder; --resume goes on"
        print("\nstopped: " + said if said else "\nstopped", file=sys.stderr)
        leave(getattr(interrupt, "exit_code", 130))


@contextlib.contextmanager
def _notes_in_one_line() -> Iterator[None]:
    """Print a warning of an old spelling as one line, in the first process alone. Other warnings
    look as usual."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, OldSpelling):
                usual(message, category, *where)
            elif is_first_process():
                print(f"note: {message}", file=sys.stderr)

        warnings.showwarning = show
        yield
