"""What training holds in memory, network by network, and what its activations take, measured."""

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
LABEL = 28


@dataclass(frozen=True)
class Footprint:
    """Bytes that one network takes in a process.

    Attributes:
        name: of the row.
        parameters: their number, in all processes together where they share the network.
        weights, gradients, adam, ema: bytes of parameters and buffers, gradients, two moments,
            shadow weights.
        activations: bytes that the graph of its loss keeps for one micro-batch.
        host: bytes that are kept in CPU memory wherever the network is, not among the rest.
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
        """Bytes that are there all the time: without activations and `host`."""
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
    """What `network` takes, with AdamW over all of its parameters if `trained`.

    Args:
        name: of the row.
        network: its parameters and buffers are counted once each, those on other networks' memory
            too.
        trained: it has gradients and two moments in the dtype of its weights.
        ema: dtype of its average, None without one.
        ema_on_cpu: the average is kept in CPU memory.
        activations: bytes, as `activation_bytes` measures them.
        shards: processes that share parameters and all that is shaped like them (FSDP2); buffers
            each has whole, and a copy of the network in CPU memory
            (:class:`fastgen.training.trained_network.TrainedNetwork`). None: not shared.
    """
    parameters = list(network.parameters())
    parts = shards or 1
    own = sum(_shard(p, parts) * p.element_size() for p in parameters)
    buffers = sum(map(_bytes, network.buffers()))
    shadow = 0
    if ema is not None:
        for _, value in averaged_weights(network):
            numbers = _shard(value, parts) if isinstance(value, nn.Parameter) else value.numel()
            shadow += numbers * (ema if value.is_floating_point() else value.dtype).itemsize
    whole = 0 if shards is None else sum(map(_bytes, parameters)) + buffers
    return Footprint(
        name,
        sum(p.numel() for p in parameters),
        own + buffers,
        gradients=own if trained else 0,
        adam=2 * own if trained else 0,
        ema=0 if ema_on_cpu else shadow,
        activations=activations,
        host=whole + (shadow if ema_on_cpu else 0),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _shard(parameter: Tensor, shards: int) -> int:
    """Numbers of `parameter` in the largest of its shards: FSDP2 cuts the first axis."""
    rows = max(1, len(parameter) if parameter.ndim else 1)
    return -(-rows // shards) * (parameter.numel() // rows)


def activation_bytes(forward: Callable[[], Any], networks: Sequence[nn.Module]) -> int:
    """Bytes that the graph of `forward()` keeps for its backward: distinct storages, without the
    networks' own.

    Where blocks are recomputed (:mod:`fastgen.training.recompute`) the backward holds those of one block at
    a time in addition: the largest one's are counted.

    Args:
        forward: returns a loss; called once, or twice where blocks are recomputed. Nothing is
            differentiated.
        networks: whose parameters and buffers are not activations.
    """
    total, _ = _saved_bytes(forward, networks, ())
    if blocks := [block for network in networks for block in recomputed(network)]:
        recomputing = [network for network in networks if recomputed(network)]
        for network in recomputing:
            keep_blocks(network)
        try:
            total += _saved_bytes(forward, networks, blocks)[1]
        finally:
            for network in recomputing:
                recompute_blocks(network)
    return total


def _saved_bytes(
    forward: Callable[[], Any], networks: Sequence[nn.Module], blocks: Sequence[nn.Module]
) -> tuple[int, int]:
    """(bytes that are saved in all, the most that one of `blocks` adds)."""
    own = {
        tensor.untyped_storage().data_ptr()
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    }
    # The storages themselves, so that no other tensor takes the address of one that was let go.
    found: dict[int, torch.UntypedStorage] = {}
    before: list[int] = []
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
    """A line for each network, one for each entry of `tensors` (bytes), and the total of a process,
    in MB.

    Losses are differentiated one after the other, so the total holds the largest of their
    activations. What is in CPU memory wherever networks are, `tensors` among it, has a total of its
    own unless `device` is the CPU.

    Args:
        title: of what.
        device: the type of device that networks are on.
    """
    columns = ("parameters", *COLUMNS, "total")
    head = f"{title}: memory, MB" if title else "memory, MB"
    lines = ["", f"{head:<{LABEL}}" + "".join(f"{name:>12}" for name in columns)]

    def line(name: str, number: int | None, sizes: Sequence[int | None]) -> str:
        counted = "" if number is None else f"{number:,}"
        return f"{name:<{LABEL}}{counted:>12}" + "".join(
            f"{'' if size is None else f'{size / 1e6:.2f}':>12}" for size in sizes
        )

    for row in rows:
        parts = (row.weights, row.gradients, row.adam, row.ema, row.activations)
        lines.append(line(row.name, row.parameters, (*parts, sum(parts))))
    host = {f"{row.name}, in CPU memory": row.host for row in rows if row.host} | dict(tensors)
    lines += [line(name, None, (*[None] * len(COLUMNS), size)) for name, size in host.items()]
    sums = [
        sum(getattr(row, part) for row in rows) for part in ("weights", "gradients", "adam", "ema")
    ]
    largest = max((row.activations for row in rows), default=0)
    numbers = sum(row.parameters for row in rows)
    there = sum(sums) + largest
    here = sum(host.values())
    if device == "cpu":
        return "\n".join([*lines, line("total", numbers, (*sums, largest, there + here))])
    lines.append(line(f"total on {device}", numbers, (*sums, largest, there)))
    return "\n".join([*lines, line("total in CPU memory", None, (*[None] * len(COLUMNS), here))])
