"""What training holds in memory, network by network, and what its activations take, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .recompute import keep_blocks, recompute_blocks, recomputed

__all__ = ["Footprint", "activation_bytes", "footprint", "memory_table"]

COLUMNS = ("weights", "gradients", "Adam", "EMA", "activations")


@dataclass(frozen=True)
class Footprint:
    """Bytes that one network takes in a process.

    Attributes:
        name: of the row.
        parameters: their number.
        weights, gradients, adam, ema: bytes of parameters and buffers, gradients, two moments, shadow weights.
        activations: bytes that the graph of its loss keeps for one micro-batch.
        host_ema: bytes of an average that is kept in CPU memory, not among the rest.
    """

    name: str
    parameters: int
    weights: int
    gradients: int = 0
    adam: int = 0
    ema: int = 0
    activations: int = 0
    host_ema: int = 0

    @property
    def held(self) -> int:
        """Bytes that are there all the time: without activations."""
        return self.weights + self.gradients + self.adam + self.ema


def footprint(
    name: str,
    network: nn.Module,
    *,
    trained: bool = True,
    ema: torch.dtype | None = None,
    ema_on_cpu: bool = False,
    activations: int = 0,
) -> Footprint:
    """What `network` takes, with AdamW over all of its parameters if `trained`.

    Args:
        name: of the row.
        network: its parameters and buffers are counted once each, those on other networks' memory too.
        trained: it has gradients and two moments in the dtype of its weights.
        ema: dtype of its average, None without one.
        ema_on_cpu: the average is kept in CPU memory.
        activations: bytes, as `activation_bytes` measures them.
    """
    parameters = list(network.parameters())
    own = sum(p.numel() * p.element_size() for p in parameters)
    buffers = sum(b.numel() * b.element_size() for b in network.buffers())
    shadow = 0 if ema is None else sum(p.numel() for p in parameters) * ema.itemsize
    return Footprint(
        name,
        sum(p.numel() for p in parameters),
        own + buffers,
        gradients=own if trained else 0,
        adam=2 * own if trained else 0,
        ema=0 if ema_on_cpu else shadow,
        activations=activations,
        host_ema=shadow if ema_on_cpu else 0,
    )


def activation_bytes(forward: Callable[[], Any], networks: Sequence[nn.Module]) -> int:
    """Bytes that the graph of `forward()` keeps for its backward: distinct storages, without the networks' own.

    Where blocks are recomputed (:mod:`fastgen.recompute`) the backward holds those of one block at a time in addition:
    the largest one's are counted.

    Args:
        forward: returns a loss; called once, or twice where blocks are recomputed. Nothing is differentiated.
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


def memory_table(rows: Sequence[Footprint], tensors: Mapping[str, int]) -> str:
    """A line for each network, one for each entry of `tensors` (bytes), and the total of a process, in MB.

    Losses are differentiated one after the other, so the total holds the largest of their activations.
    """
    columns = ("parameters", *COLUMNS, "total")
    lines = ["", f"{'memory, MB':<16}" + "".join(f"{name:>13}" for name in columns)]

    def line(name: str, number: int | None, sizes: Sequence[int | None]) -> str:
        counted = "" if number is None else f"{number:,}"
        return f"{name:<16}{counted:>13}" + "".join(
            f"{'' if size is None else f'{size / 1e6:.2f}':>13}" for size in sizes
        )

    for row in rows:
        parts = (row.weights, row.gradients, row.adam, row.ema, row.activations)
        lines.append(line(row.name, row.parameters, (*parts, sum(parts))))
    lines += [line(name, None, (*[None] * len(COLUMNS), size)) for name, size in tensors.items()]
    sums = [sum(getattr(row, part) for row in rows) for part in ("weights", "gradients", "adam", "ema")]
    largest = max((row.activations for row in rows), default=0)
    total = sum(sums) + largest + sum(tensors.values())
    lines.append(line("total", sum(row.parameters for row in rows), (*sums, largest, total)))
    if host := sum(row.host_ema for row in rows):
        lines.append(f"and {host / 1e6:.2f} of EMA in CPU memory")
    return "\n".join(lines)
