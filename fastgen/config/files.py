"""Config files: from YAML and overrides to a config, and back; errors name the key in full.

A file holds only what differs from the defaults. Overrides, ``key.sub=value``, win over the file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from .._core.files import named_path
from .._core.messages import brief
from .._core.yaml_files import parse_yaml, read_yaml
from .base import PYTHON_ONLY
from .old_spellings import method_asked_for, old_spellings

__all__ = ["C", "describe", "dump_anywhere", "dump_yaml", "load_config", "validate"]

C = TypeVar("C", bound=BaseModel)

_MOST_ERRORS = 8

# Keys that hold a path. In a file it is relative to that file, in an override to the working
# directory.
_FILE_RELATIVE = (
    "data.path",
    "data.cache",
    "data.normalize.limits",
    "data.symmetry.in_rep.matrices",
    "data.symmetry.cond_rep.matrices",
    "data.symmetry.out_rep.matrices",
    "teacher.folder",
    "teacher.weights",
    "teacher.null_cond",
    "teacher.scheduler",
)

# What such a key may hold that is no path.
_WORDS = {"teacher.null_cond": ("zeros",)}


def load_config(
    schema: type[C], path: str | os.PathLike[str], overrides: list[str] | None = None
) -> C:
    """Config from a YAML file and overrides.

    Args:
        schema: class of the config.
        path: of the file.
        overrides: such as ``train.steps=300``; values are YAML.

    Raises:
        ValueError: the file is missing or not YAML, a key is unknown or its value wrong.
    """
    path = Path(path)
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise ValueError(
            f"expected config {path} to be a mapping of keys, got {type(values).__name__}"
        )
    _make_absolute(values, named_path(path).parent, path.resolve().parent)
    given: dict[str, Any] = {}
    for override in overrides or []:
        key, _, text = override.partition("=")
        given[key.strip()] = _value_of(text, f"override {override!r}")
    for key, value in given.items():
        _assign(values, key, value)
    values = method_asked_for(values, given)
    # What the overrides brought; the file's own paths are absolute by now.
    _make_absolute(values, Path.cwd())
    for key, field in schema.model_fields.items():
        # A group without entries is null in YAML.
        if values.get(key, ...) is None and _group_of(field.annotation) is not None:
            del values[key]
    return validate(schema, values)


def validate(schema: type[C], values: dict[str, Any]) -> C:
    """Validated config, with errors as one line: ``train.steps: expected ..., got ...``."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        old = old_spellings(values)
        said = [_explain(schema, item, old) for item in error.errors(include_url=False)]
        if len(said) > _MOST_ERRORS:
            said[_MOST_ERRORS:] = [f"and {len(said) - _MOST_ERRORS} more"]
        raise ValueError("; ".join(said)) from None


def dump_yaml(config: BaseModel) -> str:
    """Resolved config as YAML that :func:`load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dump_anywhere(config: BaseModel) -> str:
    """`dump_yaml` with absolute paths, so that it means the same in every folder."""
    values = config.model_dump(mode="json")
    _make_absolute(values, Path.cwd())
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def describe(schema: type[BaseModel]) -> str:
    """One line per key: ``full.key  (default)  meaning``."""
    lines = [f"  {key.name:<44} ({key.default})  {key.meaning}" for key in _keys(schema)]
    return "\n".join(lines)


# ---- Overrides and paths -------------------------------------------------------------------------


def _value_of(text: str, where: str) -> Any:
    """What an override says: YAML, or a name that this system has no letters for."""
    # Python stands surrogates for bytes of the command line that it can't decode: a path in
    # another script where the system's code is ASCII.
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    return parse_yaml(text, where)


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Put `value` where the full `key` says; a group is merged into the one that is there."""
    *parents, last = key.split(".")
    group = values
    for parent in parents:
        if group.get(parent) is None:
            group[parent] = {}
        group = group[parent]
        if not isinstance(group, dict):
            raise ValueError(f"override {key}: {parent!r} is not a group of keys")
    before = group.get(last)
    if isinstance(value, dict) and isinstance(before, dict):
        value = {**before, **value}
    group[last] = value


def _make_absolute(values: dict[str, Any], *bases: Path) -> None:
    """Resolve the relative paths among `values` against the base where there is such a file, else
    against the first. The name of a file stays what it is: it says the format."""
    for key in _FILE_RELATIVE:
        *parents, last = key.split(".")
        group: Any = values
        for parent in parents:
            group = group.get(parent) if isinstance(group, dict) else None
        path = group.get(last) if isinstance(group, dict) else None
        if isinstance(path, str) and path not in _WORDS.get(key, ()):
            try:
                places = [named_path(path, base) for base in bases]
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
            group[last] = str(next((place for place in places if place.exists()), places[0]))


# ---- The keys of a schema ------------------------------------------------------------------------


class _Key(NamedTuple):
    """A key by its full name, its default as text, and what it means."""

    name: str
    default: str
    meaning: str


def _keys(schema: type[BaseModel]) -> Iterator[_Key]:
    """Every key of a schema, those of its groups included."""
    for name, field in schema.model_fields.items():
        if field.json_schema_extra == PYTHON_ONLY:
            continue
        meaning = field.description or ""
        group = _group_of(field.annotation)
        if group is None:
            required = field.default is PydanticUndefined
            yield _Key(name, "required" if required else str(field.default), meaning)
        elif isinstance(field.default, BaseModel):
            yield from _keys_of_group(name, group, field.default)
        else:
            yield _Key(name, "null", meaning)
            yield from _keys_of_group(name, group, None)


def _keys_of_group(name: str, group: type[BaseModel], default: BaseModel | None) -> Iterator[_Key]:
    """The keys of the group `name`, with the values that `default` has for them: they need not be
    those of the group's class."""
    for key in _keys(group):
        value = getattr(default, key.name, key.default)
        yield _Key(f"{name}.{key.name}", str(value), key.meaning)


def _group_of(annotation: Any) -> type[BaseModel] | None:
    """The schema of a field that is a group of keys, possibly null; None for other fields."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


# ---- Errors --------------------------------------------------------------------------------------


def _explain(schema: type[C], item: Any, old: dict[str, str]) -> str:
    """One error of pydantic's in our words; `old` as from `old_spellings`."""
    # Of a field with several types the location also names the one that was tried, `list[str]`: not
    # the user's key.
    key = ".".join(str(part) for part in item["loc"] if "[" not in str(part))
    if item["type"] == "extra_forbidden":
        near = _nearest_key(schema, key)
        hint = "" if near is None else f", did you mean {near!r}?"
        return f"unknown key {key!r}{hint} (--help lists all keys)"
    message = item["msg"].removeprefix("Value error, ")
    if key in old:
        key = f"{key} ({old[key]})"
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, got {brief(item['input'])}"


def _nearest_key(schema: type[BaseModel], key: str) -> str | None:
    """The key or group spelled most like `key`, or else one in another group that ends like it."""
    known = [known.name for known in _keys(schema)]
    groups = {name.rsplit(".", n)[0] for name in known for n in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(key, sorted({*known, *groups}), n=1, cutoff=0.5)
    last = key.rpartition(".")[2]
    near += [name for name in known if name.rpartition(".")[2] == last]
    return near[0] if near else None
