"""Calls of networks that leave what they were given as it was.

Some networks edit their input, the times or the condition in place, by `x.mul_(2)` or
`cond.pop("mask")`. Their caller goes on with these: a sampler's state, a batch of data. The first
calls of a network are made on copies. One that has changed a copy is called on copies from then
on, and so are copies of it; any other is called directly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .modules import as_built

__all__ = ["call_intact"]

# Among the attributes of a network, so that a copy knows it, too: how many of its next calls are
# watched; or that it edits what it is given.
_WATCHED = "_fastgen_calls_to_watch"
_CALLS = 16  # some edit at some times only
_EDITS = -1
_NOTES = threading.Lock()


def call_intact(network: Callable[..., Any], x_t: Tensor, t: Any, cond: Any) -> Any:
    """`network(x_t, t, cond)`, after which the three are what they were.

    Args:
        network: a module, a method of one, or a function.
        x_t, t, cond: handed over, or copies of them.

    Raises:
        ValueError: a network that left them alone in its first calls has edited one.
    """
    owner = getattr(network, "__self__", network)
    if not isinstance(owner, nn.Module) or torch.compiler.is_compiling():
        return network(*_copies(x_t, t, cond))
    bare = as_built(owner)
    attributes = vars(bare)
    left = attributes.get(_WATCHED, _CALLS)
    if left == 0:
        return _checked(network, bare, x_t, t, cond)
    given = _copies(x_t, t, cond)
    handed = _tensors(given)
    answer = network(*given)
    if left > 0:
        edited = _differ(_tensors((x_t, t, cond)), handed, _tensors(given))
        _note(attributes, edited)
    return answer


def _note(attributes: dict[str, Any], edited: bool) -> None:
    """Count a call that was watched. Of threads that call one network at once none takes back what
    another has found."""
    with _NOTES:
        left = attributes.get(_WATCHED, _CALLS)
        if left > 0:
            attributes[_WATCHED] = _EDITS if edited else left - 1


def _copies(x_t: Tensor, t: Any, cond: Any) -> tuple[Any, Any, Any]:
    return _copy(x_t), _copy(t), _copy(cond)


def _copy(value: Any) -> Any:
    """A copy of tensors in dicts, lists and tuples; what is of another kind is handed on."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is dict:
        return {key: _copy(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copy(entry) for entry in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    """The tensors that `_copy` copies, in their order."""
    if isinstance(value, Tensor):
        return [value]
    if type(value) is dict:
        value = list(value.values())
    if type(value) in (list, tuple):
        return [x for entry in value for x in _tensors(entry)]
    return []


def _differ(before: list[Tensor], handed: list[Tensor], after: list[Tensor]) -> bool:
    """Whether tensors or their numbers are others after a call.

    Args:
        before: the originals.
        handed: their copies, as they were handed over.
        after: what the copied condition holds after the call.
    """
    if not _are_the_same(handed, after):
        return True
    return any(_was_changed(x, y) for x, y in zip(before, after, strict=True))


def _was_changed(x: Tensor, copy: Tensor) -> bool:
    """Whether a copy is no longer equal to `x`, of which it was made."""
    if x.shape != copy.shape:
        return True
    if copy.device.type != "cpu" and not copy.is_inference():
        # A look at the numbers would wait for the device.
        return copy._version > 0
    # Writing through `.data` or numpy passes torch's count of changes by.
    return not torch.equal(x.detach(), copy.detach())


def _are_the_same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(x is y for x, y in zip(before, after, strict=True))


def _checked(network: Callable[..., Any], bare: nn.Module, x_t: Tensor, t: Any, cond: Any) -> Any:
    """A call on the very tensors; torch counts the changes of each.

    Args:
        bare: the module that is called, for its name.
    """
    in_cond = _tensors(cond)
    given = [x for x in (x_t, t, *in_cond) if isinstance(x, Tensor)]
    before = [_changes_of(x) for x in given]
    answer = network(x_t, t, cond)
    same = isinstance(cond, Tensor) or _are_the_same(in_cond, _tensors(cond))
    if not same or before != [_changes_of(x) for x in given]:
        raise ValueError(
            f"expected {type(bare).__name__} to leave x_t, t and cond as they are, got one of them "
            "changed in place by some of its calls; let it make new tensors (x = 2 * x, not "
            "x.mul_(2))"
        )
    return answer


def _changes_of(x: Tensor) -> int:
    """How often `x` was written to; inference tensors don't count."""
    return 0 if x.is_inference() else x._version
