"""JSON files: readable, of finite numbers, checked before they are trusted.

Every refusal is a ValueError of one line: which file, what was expected, what was found, what to
do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .files import read_bytes, write_file
from .messages import EXPORT_AGAIN, brief, differences

__all__ = [
    "MOST_JSON_BYTES",
    "check_names",
    "parse_json",
    "plain_json",
    "read_json",
    "unique_keys",
    "write_json",
]

# A config is a page; anything larger is something else and isn't worth parsing.
MOST_JSON_BYTES = 1 << 24


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write readable JSON whole; floats read back exactly.

    Raises:
        ValueError: NaN or infinity.
        OSError: it can't be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    # Paths may hold bytes that aren't of the system's code, as surrogates.
    write_file(path, text.encode("utf-8", "surrogatepass"))


def plain_json(value: Any, where: str) -> Any:
    """`value` as JSON can hold it: tuples to lists, tensors and arrays to numbers and lists, NaN
    and infinity to None.

    Raises:
        TypeError: something JSON has no word for; `where` names its place.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain_json(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "tolist"):
        return plain_json(value.tolist(), where)
    raise TypeError(
        f"expected {where} to hold numbers, text, lists and dicts, got {type(value).__name__}"
    )


def read_json(path: Path, *, only_finite: bool = True) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        only_finite: refuse NaN and infinity; False for files of others, who write them.

    Raises:
        ValueError: missing, not a file, too large, not JSON, a repeated key, NaN or infinity.
    """
    text = read_bytes(path, MOST_JSON_BYTES, EXPORT_AGAIN)
    value = parse_json(text, str(path), only_finite=only_finite)
    if not isinstance(value, dict):
        raise ValueError(
            f"{path}: expected a JSON object, got {type(value).__name__}; {EXPORT_AGAIN}"
        )
    return value


def parse_json(text: bytes, where: str, *, only_finite: bool = True) -> Any:
    """The value of a JSON text; `where` begins the messages, `only_finite` as in `read_json`.

    Raises:
        ValueError: not JSON, a repeated key, NaN or infinity.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_constant=_no_constant if only_finite else float,
            parse_float=_finite if only_finite else float,
            parse_int=_whole if only_finite else _whole_or_infinite,
        )
    # RecursionError: a few thousand opening brackets are enough for it.
    except (ValueError, RecursionError) as error:
        what = "expected JSON of finite numbers without repeated keys"
        raise ValueError(
            f"{where}: {what}, got: {brief(error)}; the file is truncated or edited, {EXPORT_AGAIN}"
        ) from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` that refuses a repeated key, of which JSON's own takes the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a repeated key")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"the number {name}")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text}")
    return value


def _whole(text: str) -> int:
    if not math.isfinite(float(text)):
        raise ValueError(f"the number {text}")
    return int(text)


def _whole_or_infinite(text: str) -> int | float:
    """A whole number; infinity, as 1e999 is, for one that no float holds."""
    value = float(text)
    return int(text) if math.isfinite(value) else value


def check_names(value: Any, names: Collection[str], where: str) -> None:
    """ValueError unless `value` is a dict with exactly the keys `names`."""
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: expected an object with the keys {', '.join(names)}, got {brief(value)}; "
            f"{EXPORT_AGAIN}"
        )
    if said := differences(set(names), set(value)):
        raise ValueError(
            f"{where}: expected the keys {', '.join(names)}, got them with {said}; {EXPORT_AGAIN}"
        )
