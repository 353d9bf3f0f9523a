"""Used parameters: those that an update has a gradient for, the same on all processes that share a
batch.

Which parameters a loss uses may differ by update and by process: experts by time, branches by
class, heads that nothing calls. Alone, a process has no gradient (None) in what it didn't use, and
AdamW leaves such parameters as they are: no decay, no step of the moments. Several processes shall
do as one that has the whole batch would:

    used by some processes    the mean gradient, to which the others add zeros
    used by none              no gradient
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .processes import Processes

__all__ = ["UsedParameters"]


class UsedParameters:
    """What one network's updates use, noted on each process and agreed among all.

    Of an update: `begin`, then the losses, the last one through `reaching_all`, the backward, then
    `agree`.

    Args:
        bare: the network itself, prepared.
        network: as training calls it: `bare`, or DDP around it.
        processes: that share a batch.
    """

    def __init__(self, bare: nn.Module, network: nn.Module, processes: Processes) -> None:
        self.processes = processes
        self.parameters = list(bare.parameters())
        self._trained = [i for i, p in enumerate(self.parameters) if p.requires_grad]
        self._everything = torch.ones(len(self.parameters), device=processes.device)
        self._noted: set[int] = set()
        self._watched: set[int] = set()
        if processes.is_fsdp2:
            # What has gradients is gathered weights, which exist in the forward alone.
            bare.register_forward_pre_hook(self._watch)
        else:
            self._watch(bare)
        # Not every release of torch has it. Without, processes in shards must all use the same.
        self._send_zeros: Any = getattr(network, "set_reduce_scatter_unused_params", None)

    def _watch(self, bare: nn.Module, inputs: object = None) -> None:
        """Have each trained parameter note that it got a gradient."""
        if len(self._watched) == len(self._trained):
            return
        for i, parameter in enumerate(bare.parameters()):
            # A judge's are frozen for the time being.
            if i not in self._watched and parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(functools.partial(self._note, i))
                self._watched.add(i)

    def _note(self, i: int, parameter: Tensor) -> None:
        # Called when the backward has been to the parameter, also without a gradient for it.
        if parameter.grad is not None:
            self._noted.add(i)

    def begin(self) -> None:
        """Forget the update before."""
        self._noted.clear()

    def reaching_all(self, loss: Tensor) -> Tensor:
        """The loss, with every trained parameter in its graph; those that it doesn't use get no
        gradient from it.

        DDP exchanges gradients once the backward has been to all parameters. One that it never
        comes to would let it wait for ever. FSDP exchanges what has gradients, and is told to send
        zeros for the rest.
        """
        if self.processes.is_fsdp2:
            if self._send_zeros is not None:
                self._send_zeros(True)
            return loss
        return _Reaching.apply(loss, *(self.parameters[i] for i in self._trained))  # pyright: ignore[reportReturnType]

    def agree(self) -> None:
        """Take away the gradient, all of zeros, of each parameter that no process used.

        All processes must call it. A process that used everything doesn't wait for the others.
        """
        if self._send_zeros is not None:
            self._send_zeros(False)  # a judge that is only asked gets no gradient at all
        idle = [i for i in self._trained if i not in self._noted]
        mine = self._everything
        if idle:
            mine = mine.clone()
            mine[idle] = 0.0
        shares = self.processes.mean(mine)
        if not idle:
            return
        for i, share in zip(idle, shares[idle].tolist(), strict=True):
            if share == 0.0:
                self.parameters[i].grad = None


class _Reaching(torch.autograd.Function):
    """The identity of a loss whose graph leads to parameters that get no gradient from here."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Sequence[Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (gradient, *[None] * ctx.parameters)
