"""Helpers under every formula: broadcasting, the float64 border, argument checks, conditions,
frozen networks, seeded draws."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from ._shards import settle

P = ParamSpec("P")
R = TypeVar("R")

# Slack for times that were computed rather than typed: a few float32 roundings around the ends of
# [0, 1].
TIME_SLACK = 1e-6
PRED_TYPES = ("flow", "x0", "eps")


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype formulas are computed in: float64, or float32 on `mps`, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def at_hand(x: Tensor) -> bool:
    """Whether the host can read `x` for nothing; for a number on a GPU it waits until all before it
    is computed."""
    return x.device.type == "cpu"


def time_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of times that travel beside data of `dtype`: float64 for float64, else float32,
    never less."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_shape(name: str, x: Tensor, expected: Sequence[int | str]) -> None:
    """Refuse `x` unless its shape fits `expected`.

    Args:
        name: the argument's name, as the caller spells it.
        x: tensor of any shape.
        expected: one entry per axis: an int is the size required, a string names a free axis
            (`"B"`) or, written `"T_z <= 2"`, an axis of at least 1 and at most that size.

    Raises:
        ValueError: such as `expected Z of shape (B, T_z <= 2, 2), got (8, 3, 2)`.
    """
    fits = isinstance(x, Tensor) and x.ndim == len(expected)
    if fits:
        for size, want in zip(x.shape, expected, strict=True):
            if isinstance(want, str):
                _, bounded, bound = want.partition("<=")
                fits = fits and (not bounded or 1 <= size <= int(bound))
            else:
                fits = fits and size == want
    if not fits:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        wanted = ", ".join(str(size) for size in expected) + ("," if len(expected) == 1 else "")
        raise ValueError(f"expected {name} of shape ({wanted}), got {got}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse `value` unless it is one of `choices`.

    Raises:
        ValueError: such as `unknown method 'rk9', expected one of: euler, heun`.
    """
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}, expected one of: {', '.join(choices)}")


def check_pred_type(pred_type: str, name: str = "pred_type") -> None:
    """Refuse a `pred_type` that is not one of "flow", "x0", "eps".

    Raises:
        ValueError: for "v" the message says which quantity of that letter is spelt how here.
    """
    if pred_type == "v":
        raise ValueError(
            f"unknown {name} 'v': say 'flow' for eps - x0; for networks trained on v = alpha eps "
            "- sigma x0 wrap the network with as_rectified_flow(prediction='v')"
        )
    check_choice(name, pred_type, PRED_TYPES)


def check_count(name: str, value: object) -> int:
    """`value` as the count it is.

    Raises:
        ValueError: unless it is an int of at least 1; such as `expected steps to be an int >= 1,
            got 0`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected {name} to be an int >= 1, got {value!r}")
    return value


def check_time(t: float | Tensor, name: str = "t") -> None:
    """Refuse a time that is not a float or a float32/float64 tensor, or that lies outside [0, 1].

    Floats and tensors in CPU memory are range-checked. Tensors on an accelerator are not: reading
    their extremes would make the host wait for the device at every formula.

    Raises:
        TypeError: for bfloat16, float16 and integer tensors, and for anything that is not a number.
        ValueError: for times outside [0, 1] (up to `TIME_SLACK`) and for NaN.
    """
    if isinstance(t, Tensor):
        if t.dtype not in (torch.float32, torch.float64):
            reason = (
                "; bfloat16 rounds 0.999 to 1.0, so times are never kept in it"
                if t.is_floating_point()
                else ""
            )
            raise TypeError(
                f"expected {name} to be a float or a float32/float64 tensor, got {t.dtype}{reason}"
            )
        if t.device.type != "cpu" or t.numel() == 0 or torch.compiler.is_compiling():
            return
        low, high = (float(bound) for bound in torch.aminmax(t.detach()))
    elif isinstance(t, int | float) and not isinstance(t, bool):
        low = high = float(t)
    else:
        raise TypeError(
            f"expected {name} to be a float or a float32/float64 tensor, got {type(t).__name__}"
        )
    if not (low >= -TIME_SLACK and high <= 1.0 + TIME_SLACK):
        shown = f"{low:g}" if low == high else f"values from {low:g} to {high:g}"
        raise ValueError(
            f"expected {name} in [0, 1], got {shown}; divide times counted to 1000 by 1000"
        )


def map_tensors(function: Callable[[Tensor], Any], cond: Any) -> Any:
    """`cond` with `function` applied to each Tensor in it: a Tensor, a tuple, list or mapping of
    such, or None.

    Raises:
        TypeError: for anything else in it.
    """
    if cond is None:
        return None
    if isinstance(cond, Tensor):
        return function(cond)
    if isinstance(cond, Mapping):
        return {key: map_tensors(function, value) for key, value in cond.items()}
    if isinstance(cond, tuple | list):
        return tuple(map_tensors(function, value) for value in cond)
    raise TypeError(
        "expected cond as a Tensor, a tuple or mapping of Tensors, or None, got "
        f"{type(cond).__name__}; labels are an integer Tensor (B,)"
    )


def tensors_in(cond: Any) -> list[Tensor]:
    """The Tensors of a condition (see :func:`map_tensors`), in their order.

    Raises:
        ValueError: for a scalar Tensor, which has no rows; TypeError as `map_tensors`.
    """
    found: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        if value.ndim == 0:
            raise ValueError("expected tensors with B rows in cond, got a scalar Tensor")
        found.append(value)
        return value

    map_tensors(note, cond)
    return found


def take_rows(cond: Any, rows: Tensor | slice) -> Any:
    """The rows of every Tensor in a condition."""
    return map_tensors(lambda value: value[rows], cond)


def cond_to(cond: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """A condition on `device`, its floating tensors in `dtype`; None: as they are. Labels keep
    their integer dtype.

    From CPU memory to a GPU it goes by page-locked memory, so that the host need not wait for what
    the GPU is doing.
    """
    to_gpu = device is not None and device.type == "cuda"

    def move(value: Tensor) -> Tensor:
        wanted = dtype if value.is_floating_point() else None
        if to_gpu and value.device.type == "cpu":
            return value.pin_memory().to(device=device, dtype=wanted, non_blocking=True)
        return value.to(device=device, dtype=wanted)

    return map_tensors(move, cond)


def cond_text(cond: Any, rows: str | None = None) -> str:
    """A condition for people: "(8, 1, 2)", "integers (8,)", "{a: (8, 3), b: integers (8,)}",
    "None".

    Args:
        rows: written in place of the number of rows.
    """
    if isinstance(cond, Tensor):
        sizes = ", ".join(map(str, cond.shape if rows is None else (rows, *cond.shape[1:])))
        return f"{'' if cond.is_floating_point() else 'integers '}({sizes}{',' if cond.ndim == 1 else ''})"
    if isinstance(cond, Mapping):
        return (
            "{" + ", ".join(f"{key}: {cond_text(value, rows)}" for key, value in cond.items()) + "}"
        )
    if isinstance(cond, tuple | list):
        return "(" + ", ".join(cond_text(value, rows) for value in cond) + ")"
    return str(cond)


def expand_like(t: float | Tensor, x: Tensor) -> Tensor:
    """Give `t` trailing axes of size 1, so that it broadcasts over the batch of `x`.

    Args:
        t: Python float, 0-d or one-element tensor, shape (B,), or shape (B, 1, ..., 1).
        x: shape (B, ...).

    Returns:
        `t` with shape (B, 1, ..., 1) and its own dtype; a float becomes a 0-d float64 tensor.

    Raises:
        ValueError: if `t` is neither a scalar nor one time per sample.
    """
    if not isinstance(t, Tensor):
        return x.new_full((), t, dtype=wide_dtype(x.device))
    if t.ndim == 0:
        return t
    if t.numel() == 1:
        return t.reshape((1,) * x.ndim)
    if t.ndim > x.ndim or t.shape[0] != x.shape[0] or t.numel() != t.shape[0]:
        raise ValueError(
            f"expected t of shape ({x.shape[0]},) for x of shape {tuple(x.shape)}, got "
            f"{tuple(t.shape)}"
        )
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def expand_mask(mask: Tensor, x: Tensor) -> Tensor:
    """A padding mask as one flag for each number of `x`.

    Args:
        mask: bool, True = real: (B, T) or more of the leading axes of `x`, each of its size or 1.
        x: shape (B, T, ...).

    Returns:
        bool, the shape of `x`.

    Raises:
        ValueError: for another dtype or shape, or a row without anything real (CPU only: on an
            accelerator reading it would make the host wait, and the mean over nothing is NaN).
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise ValueError(
            f"expected mask to be a bool Tensor, got {getattr(mask, 'dtype', type(mask).__name__)}"
        )
    sizes = tuple(x.shape[: mask.ndim])
    if not 2 <= mask.ndim <= x.ndim or any(
        size not in (1, want) for size, want in zip(mask.shape, sizes, strict=True)
    ):
        raise ValueError(
            f"expected mask of shape {tuple(x.shape[:2])}, or one that broadcasts to "
            f"{tuple(x.shape)} from its leading axes, got {tuple(mask.shape)}"
        )
    if mask.device.type == "cpu" and not (real := mask.flatten(1).any(1)).all():
        raise ValueError(
            "expected mask to have a real token in each row, got none in row "
            f"{int(real.int().argmin())}"
        )
    return mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)).expand(x.shape)


def masked_mean(x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Mean of `x` over the axis `dim`, of the entries where `mask` (bool, the shape of `x`) is
    True; of all for None.

    What is masked out counts as nothing, also if it is not finite, and gets no gradient.
    """
    if mask is None:
        return x.mean(dim)
    return x.masked_fill(~mask, 0.0).sum(dim) / mask.sum(dim)


def in_float64(*, like: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: compute in float64, answer in the dtype of the argument named `like`.

    Floating tensors among the arguments are cast to float64 (gradients pass through the casts),
    Python floats stay exact. A parameter called `t` is a time and goes through `check_time` before
    it is cast: a bfloat16 time has already lost what float64 is for. If the `like` argument is a
    Python float the result keeps the dtype it was computed in.

    Raises (the decorated function):
        TypeError: if the `like` argument is not a floating point tensor (or a float).
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            reference = bound.arguments[like]
            if isinstance(reference, Tensor):
                if not reference.is_floating_point():
                    raise TypeError(
                        f"expected {like} to be a floating point tensor, got {reference.dtype}"
                    )
            elif not isinstance(reference, int | float):
                raise TypeError(
                    f"expected {like} to be a floating point tensor, got {type(reference).__name__}"
                )
            if "t" in bound.arguments:
                check_time(bound.arguments["t"])
            for name, value in bound.arguments.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    bound.arguments[name] = value.to(wide_dtype(value.device))
            result: Any = function(*bound.args, **bound.kwargs)
            if not isinstance(reference, Tensor):
                return result
            if isinstance(result, tuple):
                return tuple(part.to(reference.dtype) for part in result)  # pyright: ignore[reportReturnType]
            return result.to(reference.dtype)

        return wrapped

    return decorate


@contextlib.contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Inside, no parameter of `modules` collects gradients, while gradients still flow through to
    their inputs.

    Unlike `torch.no_grad` this lets a loss reach what *feeds* the network. Each parameter gets its
    own flag back on exit, also after an error. `None` entries are skipped.
    """
    settle(*modules)
    flags = {
        p: p.requires_grad for module in modules if module is not None for p in module.parameters()
    }
    try:
        for parameter in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        settle(*modules)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Inside, `modules` are in eval mode (no dropout); every submodule gets its own mode back on
    exit."""
    # Into the dicts themselves: a module's own setattr first looks through parameters and buffers,
    # which over all submodules, several times an update, is a twentieth of the update of a small
    # network.
    training = [
        m.__dict__
        for module in modules
        if module is not None
        for m in module.modules()
        if m.training
    ]
    try:
        for attributes in training:
            attributes["training"] = False
        yield
    finally:
        for attributes in training:
            attributes["training"] = True


def generator_for(seed: int, *stream: int | str) -> torch.Generator:
    """A fresh CPU generator whose state is a pure function of `seed` and the names in `stream`.

    `generator_for(seed, "noise", step)` gives the same draws in every process and after every
    resume. The hash is blake2b over the typed names, the same in every Python (`hash` of a string
    is not); the CPU generator keeps its low 32 bits.
    """
    text = "\0".join(f"{type(name).__name__}:{name}" for name in (int(seed), *stream))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def draw_uniform(
    shape: Sequence[int], *, device: torch.device | str, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform numbers in [0, 1), float64 where the device has it, drawn where `generator` lives and
    then moved."""
    place = torch.device(device) if generator is None else generator.device
    u = torch.rand(tuple(shape), dtype=wide_dtype(place), device=place, generator=generator)
    return u.to(device=device, dtype=wide_dtype(torch.device(device)))


def draw_normal(
    shape: Sequence[int],
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Standard normal numbers, drawn where `generator` lives and then moved; below float32 drawn in
    float32."""
    place = torch.device(device) if generator is None else generator.device
    return torch.randn(tuple(shape), dtype=time_dtype(dtype), device=place, generator=generator).to(
        device, dtype
    )


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel and torch.compile wrappers; the module itself if
    there are none."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module
