"""Memory of training: what each network holds, what its activations take, measured, and a table of
both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ema import averaged_weights
from .recompute import keep_blocks, recompute_blocks, recomputed

__all__ = ["Footprint", "activation_bytes", "footprint", "memory_table"]

COLUMNS = ("weights", "gradients", "Adam", "EMA", "activations")
LABEL = 28  # characters of the first column
NUMBER = 12  # characters of every other one


@dataclass(frozen=True)
class Footprint:
    """Bytes that one network takes in a process.

    Attributes:
        name: of the row in the table.
        parameters: their number, over all processes where these share the network.
        weights: bytes of parameters and buffers.
        gradients: bytes of gradients.
        adam: bytes of Adam's two moments.
        ema: bytes of averaged weights.
        activations: bytes that the graph of its loss keeps for one micro-batch.
        host: bytes in CPU memory wherever the network is; they are in none of the others.
    """

    name: str
    parameters: int
    weights: int
    gradients: int = 0
    adam: int = 0
    ema: int = 0
    activations: int = 0
    host: int = 0

    @property
    def held(self) -> int:
        """Bytes that are on the device all the time: all but activations."""
        return self.weights + self.gradients + self.adam + self.ema


def footprint(
    name: str,
    network: nn.Module,
    *,
    trained: bool = True,
    ema: torch.dtype | None = None,
    ema_on_cpu: bool = False,
    activations: int = 0,
    shards: int | None = None,
) -> Footprint:
    """What `network` takes in training with AdamW, or frozen.

    Args:
        name: of the row in the table.
        network: its parameters and buffers are counted once each, also where they share memory with
            other networks.
        trained: whether its parameters have gradients and moments, in their dtypes; frozen ones
            have none.
        ema: dtype of its average; None: there is none.
        ema_on_cpu: whether the average is kept in CPU memory.
        activations: bytes, as `activation_bytes` measures them.
        shards: processes that share parameters, and all that is shaped like them (FSDP2). Each has
            buffers whole, and a copy of the network in CPU memory
            (:class:`fastgen.training.trained_network.TrainedNetwork`). None: not shared.
    """
    parameters = list(network.parameters())
    parts = 1 if shards is None else shards
    own = sum(_shard(p, parts) * p.element_size() for p in parameters)
    learned = sum(_shard(p, parts) * p.element_size() for p in parameters if p.requires_grad)
    buffers = sum(map(_bytes, network.buffers()))
    shadow = 0 if ema is None else _average_bytes(network, ema, parts)
    whole = 0 if shards is None else sum(map(_bytes, parameters)) + buffers
    return Footprint(
        name,
        sum(p.numel() for p in parameters),
        own + buffers,
        gradients=learned if trained else 0,
        adam=2 * learned if trained else 0,
        ema=0 if ema_on_cpu else shadow,
        activations=activations,
        host=whole + (shadow if ema_on_cpu else 0),
    )


def _average_bytes(network: nn.Module, dtype: torch.dtype, shards: int) -> int:
    """Bytes of the average of `network` in one process: floating-point numbers are in `dtype`, or
    in float64 where the weights are."""
    found = 0
    for _, value in averaged_weights(network):
        numbers = _shard(value, shards) if isinstance(value, nn.Parameter) else value.numel()
        floating = value.is_floating_point()
        kept = torch.promote_types(dtype, value.dtype) if floating else value.dtype
        found += numbers * kept.itemsize
    return found


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _shard(parameter: Tensor, shards: int) -> int:
    """Numbers in the largest of the shards of `parameter`: FSDP2 cuts the first axis."""
    rows = max(1, len(parameter) if parameter.ndim else 1)
    return -(-rows // shards) * (parameter.numel() // rows)


def activation_bytes(forward: Callable[[], Any], networks: Sequence[nn.Module]) -> int:
    """Bytes that the graph of `forward()` keeps for its backward, each storage counted once.

    Where blocks are recomputed (:mod:`fastgen.training.recompute`), the backward holds the
    activations of one block at a time in addition: those of the largest one are counted.

    Args:
        forward: returns a loss; called once, or twice where blocks are recomputed. Nothing is
            differentiated.
        networks: whose parameters and buffers are no activations.
    """
    total, _ = _saved_bytes(forward, networks, ())
    recomputing = [network for network in networks if recomputed(network)]
    if not recomputing:
        return total
    blocks = [block for network in recomputing for block in recomputed(network)]
    for network in recomputing:
        keep_blocks(network)
    try:
        _, largest = _saved_bytes(forward, networks, blocks)
    finally:
        for network in recomputing:
            recompute_blocks(network)
    return total + largest


def _saved_bytes(
    forward: Callable[[], Any], networks: Sequence[nn.Module], blocks: Sequence[nn.Module]
) -> tuple[int, int]:
    """(bytes that `forward` saves in all, the most that one of `blocks` adds to them)."""
    own = {
        tensor.untyped_storage().data_ptr()
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    }
    # By address. The storages are kept: no other may get the address of one that was let go.
    found: dict[int, torch.UntypedStorage] = {}
    before: list[int] = []  # bytes at the start of each block that is running
    most = 0

    def size() -> int:
        return sum(storage.nbytes() for storage in found.values())

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    def enter(*_: object) -> None:
        before.append(size())

    def leave(*_: object) -> None:
        nonlocal most
        most = max(most, size() - before.pop())

    handles = [block.register_forward_pre_hook(enter) for block in blocks]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return size(), most


def memory_table(
    rows: Sequence[Footprint], tensors: Mapping[str, int], *, title: str = "", device: str = "cpu"
) -> str:
    """A table in MB: a line for each network and each of `tensors`, and the total of a process.

    Losses are differentiated one after the other, so the total has the largest of their activations
    in it. What is in CPU memory wherever networks are has a total of its own, unless `device` is
    the CPU itself.

    Args:
        rows: of the networks.
        tensors: name -> bytes of other tensors, in CPU memory.
        title: what the table is about.
        device: type of the device of the networks.
    """
    head = f"{title}: memory, MB" if title else "memory, MB"
    columns = ("parameters", *COLUMNS, "total")
    lines = ["", f"{head:<{LABEL}}" + "".join(f"{name:>{NUMBER}}" for name in columns)]
    for row in rows:
        parts = (row.weights, row.gradients, row.adam, row.ema, row.activations)
        lines.append(_line(row.name, row.parameters, (*parts, sum(parts))))
    host = {f"{row.name}, in CPU memory": row.host for row in rows if row.host} | dict(tensors)
    nothing = [None] * len(COLUMNS)
    for name, size in host.items():
        lines.append(_line(name, None, (*nothing, size)))

    sums = (
        sum(row.weights for row in rows),
        sum(row.gradients for row in rows),
        sum(row.adam for row in rows),
        sum(row.ema for row in rows),
        max((row.activations for row in rows), default=0),
    )
    parameters = sum(row.parameters for row in rows)
    on_device = sum(sums)
    on_host = sum(host.values())
    if device == "cpu":
        lines.append(_line("total", parameters, (*sums, on_device + on_host)))
    else:
        lines.append(_line(f"total on {device}", parameters, (*sums, on_device)))
        lines.append(_line("total in CPU memory", None, (*nothing, on_host)))
    return "\n".join(lines)


def _line(name: str, parameters: int | None, sizes: Sequence[int | None]) -> str:
    """A line of the table: a label, a number of parameters and bytes; None: an empty cell."""
    cells = ["" if parameters is None else f"{parameters:,}"]
    cells += ["" if size is None else f"{size / 1e6:.2f}" for size in sizes]
    return f"{name:<{LABEL}}" + "".join(f"{cell:>{NUMBER}}" for cell in cells)
