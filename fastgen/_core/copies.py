"""Copies of networks: bare, with tensors and patches of their own.

`copy.deepcopy` alone refuses a module that holds a computed tensor, such as a weight that
`torch.nn.utils.weight_norm` makes, an attention map that was kept, or an expanded weight; it
refuses what torch.compile returns; and a patched `forward` that is a closure would go on calling
the original network with the original's weights.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

from .modules import as_built, inside_launcher

__all__ = ["copied"]

Value = TypeVar("Value")


def copied(module: nn.Module, *, sharing: dict[int, Any] | None = None) -> nn.Module:
    """A copy of a network, without what launchers have put around it or a part of it.

    It keeps what an instance has of its own: a patched `forward` or another method, hooks and
    pre-hooks, each of them bound to the copy. What torch.compile made of a method is taken off.
    Computed tensors are copied as numbers.

    Args:
        sharing: {id: what the copy has instead} of tensors and modules that are not to be copied.
    """
    memo: dict[int, Any] = {} if sharing is None else dict(sharing)
    parts = list(module.modules())
    for part in parts:
        for value in _computed(vars(part)):
            memo.setdefault(id(value), value.detach().clone())
    # The innermost first: an inner copy is found in the outer one.
    for part in reversed(parts):
        inner = inside_launcher(part)
        if inner is not None:
            memo[id(part)] = copy.deepcopy(as_built(inner), memo)
    clone = copy.deepcopy(as_built(module), memo)
    for part in parts:
        twin = memo.get(id(part))
        if isinstance(twin, nn.Module) and inside_launcher(part) is None:
            _rebind(twin, memo)
    return clone


def _computed(value: Any) -> Iterator[Tensor]:
    """Tensors in attributes of a module that come out of a computation: deepcopy refuses these."""
    if isinstance(value, Tensor):
        if value.requires_grad and not value.is_leaf:
            yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _computed(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _computed(entry)


# ---- Patches -------------------------------------------------------------------------------------


def _rebind(twin: nn.Module, memo: dict[int, Any]) -> None:
    """Have functions and hooks of a copied module speak of the copy.

    Args:
        memo: {id: its copy} of all that was copied.
    """
    attributes = vars(twin)
    for name, value in list(attributes.items()):
        if isinstance(value, dict) and name.endswith("_hooks"):
            for key, hook in value.items():
                value[key] = _of_copy(hook, memo, {})
        elif isinstance(value, FunctionType | MethodType | functools.partial):
            attributes[name] = _of_copy(value, memo, {})


def _of_copy(value: Any, memo: dict[int, Any], done: dict[int, FunctionType]) -> Any:
    """`value` with the copies of what it holds of the original network.

    Args:
        memo: {id: its copy} of all that was copied.
        done: {id: its twin} of functions, which may hold each other.
    """
    original = getattr(value, "_torchdynamo_orig_callable", None)
    if original is not None:
        return _of_copy(original, memo, done)
    if isinstance(value, MethodType):
        owner = memo.get(id(value.__self__), value.__self__)
        return MethodType(_of_copy(value.__func__, memo, done), owner)
    if isinstance(value, functools.partial):
        arguments = [_of_copy(x, memo, done) for x in value.args]
        keywords = {name: _of_copy(x, memo, done) for name, x in value.keywords.items()}
        return functools.partial(_of_copy(value.func, memo, done), *arguments, **keywords)
    if isinstance(value, FunctionType):
        return _function_of_copy(value, memo, done) if _reaches(value, memo, set()) else value
    return memo.get(id(value), value) if isinstance(value, nn.Module | Tensor) else value


def _function_of_copy(
    function: FunctionType, memo: dict[int, Any], done: dict[int, FunctionType]
) -> FunctionType:
    """The same code with other variables around it."""
    if id(function) in done:
        return done[id(function)]
    cells = tuple(CellType() for _ in function.__closure__ or ())
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    done[id(function)] = twin
    twin.__qualname__ = function.__qualname__
    twin.__dict__.update(function.__dict__)
    for cell, before in zip(cells, function.__closure__ or (), strict=True):
        for content in _contents(before):
            cell.cell_contents = _of_copy(content, memo, done)
    twin.__defaults__ = tuple(_of_copy(x, memo, done) for x in function.__defaults__ or ())
    defaults = (function.__kwdefaults__ or {}).items()
    twin.__kwdefaults__ = {name: _of_copy(x, memo, done) for name, x in defaults}
    return twin


def _reaches(value: Any, memo: dict[int, Any], seen: set[int]) -> bool:
    """Whether a value holds a part of the original network."""
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, nn.Module | Tensor):
        return id(value) in memo
    if isinstance(value, MethodType):
        inside = [value.__self__, value.__func__]
    elif isinstance(value, functools.partial):
        inside = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, FunctionType):
        inside = [x for cell in value.__closure__ or () for x in _contents(cell)]
        inside += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    else:
        return False
    return any(_reaches(x, memo, seen) for x in inside)


def _contents(cell: CellType) -> list[Any]:
    """What a variable around a function holds: nothing, before it is assigned."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []
