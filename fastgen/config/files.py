"""Config files and command lines: read, override, explain, refuse, save.

A recipe is called as ``recipe.py [file.yaml] [key.sub=value ...] [--resume] [--dry-run] [--help]``.
A file holds only what differs from the schema's defaults; overrides win over the file. Nothing here
is specific to one recipe.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from .._core.messages import brief
from .._core.yaml_files import parse_yaml, read_yaml
from .old_spellings import old_spellings

C = TypeVar("C", bound=BaseModel)

_MOST_ERRORS = 8

# Keys whose value is a path; in a file they are relative to that file, in an override to the
# working directory.
_FILE_RELATIVE = (
    *("data.path", "teacher.folder", "teacher.weights", "teacher.null_cond"),
    *(f"data.symmetry.{rep}.matrices" for rep in ("in_rep", "cond_rep", "out_rep")),
)

# What such a key may hold that is no path.
_WORDS = {"teacher.null_cond": ("zeros",)}


def load_config(
    schema: type[C], path: str | os.PathLike[str], overrides: list[str] | None = None
) -> C:
    """Config from a YAML file and ``key.sub=value`` overrides (values are YAML).

    Raises:
        ValueError: file missing or not YAML, unknown key, wrong type; the message names the key in
            full.
    """
    path = Path(path)
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise ValueError(
            f"expected config {path} to be a mapping of keys, got {type(values).__name__}"
        )
    _make_absolute(values, path.resolve().parent)
    for override in overrides or []:
        key, _, text = override.partition("=")
        _assign(values, key.strip(), parse_yaml(text, f"override {override!r}"))
    # What the overrides brought; the file's own paths are absolute by now.
    _make_absolute(values, Path.cwd())
    # A group without entries in YAML is null.
    empty = {
        key
        for key, field in schema.model_fields.items()
        if _sub_schema(field.annotation) and key in values
    }
    return validate(
        schema,
        {key: value for key, value in values.items() if value is not None or key not in empty},
    )


def validate(schema: type[C], values: dict[str, Any]) -> C:
    """Validated config, with errors as one line: ``train.steps: expected ..., got ...``."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        old = old_spellings(values)
        said = [_explain(schema, item, old) for item in error.errors(include_url=False)]
        more = [f"and {len(said) - _MOST_ERRORS} more"] if len(said) > _MOST_ERRORS else []
        raise ValueError("; ".join(said[:_MOST_ERRORS] + more)) from None


def dump_yaml(config: BaseModel) -> str:
    """Resolved config as YAML that :func:`load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dump_anywhere(config: BaseModel) -> str:
    """`dump_yaml` with absolute paths: what it says doesn't depend on the working directory or on
    where it lies."""
    values = config.model_dump(mode="json")
    _make_absolute(values, Path.cwd())
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def describe(schema: type[BaseModel], prefix: str = "") -> str:
    """One line per key: ``full.key  (default)  meaning``."""
    lines = []
    for key, default, meaning in _fields(schema, prefix):
        lines.append(f"  {key:<44} ({default})  {meaning}")
    return "\n".join(lines)


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = values[parent] = {} if values.get(parent) is None else values[parent]
        if not isinstance(child, dict):
            raise ValueError(f"override {key}: {parent!r} is not a group of keys")
        values = child
    if isinstance(value, dict) and isinstance(values.get(last), dict):
        value = {**values[last], **value}
    values[last] = value


def _make_absolute(values: dict[str, Any], base: Path) -> None:
    """Resolve the relative paths among `values` against `base`."""
    for key in _FILE_RELATIVE:
        *parents, last = key.split(".")
        group: Any = values
        for parent in parents:
            group = group.get(parent) if isinstance(group, dict) else None
        if (
            isinstance(group, dict)
            and isinstance(group.get(last), str)
            and group[last] not in _WORDS.get(key, ())
        ):
            group[last] = str((base / Path(group[last]).expanduser()).resolve())


def _sub_schema(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _fields(schema: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in schema.model_fields.items():
        default = None if field.default is PydanticUndefined else field.default
        if (sub := _sub_schema(field.annotation)) is not None:
            if default is None:
                yield f"{prefix}{name}", "null", field.description or ""
            # The instance's values, not the class' defaults: a group may start from its own.
            own = (
                {key: getattr(default, key) for key in sub.model_fields}
                if default is not None
                else {}
            )
            for key, value, meaning in _fields(sub, f"{prefix}{name}."):
                leaf = key[len(prefix) + len(name) + 1 :]
                yield key, str(own[leaf]) if leaf in own else value, meaning
        else:
            required = field.default is PydanticUndefined
            yield (
                f"{prefix}{name}",
                "required" if required else str(default),
                field.description or "",
            )


def _explain(schema: type[BaseModel], item: Any, old: dict[str, str]) -> str:
    # Of a field with several types the location also names the one that was tried, `list[str]`: not
    # the user's key.
    key = ".".join(str(part) for part in item["loc"] if "[" not in str(part))
    if item["type"] == "extra_forbidden":
        known = [name for name, _, _ in _fields(schema, "")]
        groups = {name.rsplit(".", n)[0] for name in known for n in range(1, name.count(".") + 1)}
        near = difflib.get_close_matches(key, sorted({*known, *groups}), n=1, cutoff=0.5)
        last = key.rsplit(".", 1)[-1]
        near = near or [k for k in known if k.rsplit(".", 1)[-1] == last][:1]
        return (
            f"unknown key {key!r}"
            + (f", did you mean {near[0]!r}?" if near else "")
            + " (--help lists all keys)"
        )
    message = item["msg"].removeprefix("Value error, ")
    if key in old:
        key = f"{key} ({old[key]})"
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, got {brief(item['input'])}"
