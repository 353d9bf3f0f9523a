"""The trial: before any pair is made, all that a run does to its network is done once, in small.

A copy of the network makes two updates, is copied and averaged, exported and loaded. Networks of
other libraries may refuse any of these: they keep computed weights, hide their answer's gradient,
or hold what no state dict has.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .._core.caches import renew_caches
from .._core.conditions import cond_to
from .._core.copies import copied
from .._core.messages import brief, first_names
from .._core.modules import evaluating, load_state, state_of
from .._core.prefixes import has_prefix
from .._core.seeds import draws_apart
from ..config.groups import EMAConfig
from ..config.training import OptimizerConfig
from ..export.extra_state import extra_state_of
from ..export.folders import export_student, has_custom_network, load_student
from ..networks import Cond, call_network, network_device, network_dtype, predict_x0, time_range
from ..teachers.prefixed import PrefixedNetwork
from ..training.processes import OneProcess
from ..training.trained_network import TrainedNetwork
from .setup import Setup
from .students import network_to_load

__all__ = ["try_network"]

Autocast = Callable[[], contextlib.AbstractContextManager[None]]

_ROWS = 2
_UPDATES = 2
_TIMES = (0.02, 0.25, 0.75, 0.98)
# Of an update of Adam each weight moves by this, far enough to be told from rounding.
_RATE = 1e-3
# Two copies with the same weights may differ by rounding, as parts of how far an update moves an
# answer and of the answer.
_OF_MOVE = 0.1
_OF_ANSWER = 1e-4


def try_network(
    setup: Setup, *, export: bool = False, autocast: Autocast = contextlib.nullcontext
) -> None:
    """Refuse a network that a distillation would fail with later.

    Args:
        setup: of the run. Nothing in it is changed, nor is torch's generator.
        autocast: makes the context in which training calls networks.
        export: whether to write a student's folder as well, and to load it into what the config's
            factory builds.

    Raises:
        ValueError: what failed, and why.
    """
    device = network_device(setup.source, torch.device("cpu"))
    with draws_apart(device):
        _Trial(setup, device, autocast).run(export=export)


class _Trial:
    """One trial of a student on two rows of the data, in the middle of the network's times."""

    def __init__(self, setup: Setup, device: torch.device, autocast: Autocast) -> None:
        self.setup = setup
        self.autocast = autocast  # entered for each call: it keeps cast weights while it lasts
        self.device = device
        self.pred_type = setup.cfg.student.pred_type
        batch = setup.batch(_ROWS)
        self.x0 = cond_to(batch.x0, device)
        self.cond: Cond = cond_to(batch.cond, device)
        low, high = time_range(setup.source)
        self.t = torch.full((_ROWS,), 0.5 * (low + min(high, 1.0)), device=device)
        noise = cond_to(batch.noise, device)
        t = self.t.view(-1, *[1] * (noise.ndim - 1)).to(noise.dtype)
        self.x_t = (1.0 - t) * self.x0 + t * noise

    def run(self, *, export: bool) -> None:
        _check_kinds(self.setup.source)
        self.watch(self.setup.unguided)  # in its own precision
        with _trying("a copy of the network"):
            student = self.setup.student()
        _check_kinds(student)
        before = self.answer(student)
        with _trying("an optimiser of the network"):
            rates = OptimizerConfig(lr=_RATE, warmup_steps=0)
            trained = TrainedNetwork(
                student, rates, _UPDATES, OneProcess(self.device), ema=EMAConfig(decay=0.5)
            )
        self.check_used(student)
        for number in range(_UPDATES):
            with _trying(f"update {number + 1} of {_UPDATES}"):
                trained.update(self.loss(trained.network), number)
        with _trying("a copy of the network in training"):
            copied(trained.bare)
        with _trying("an average of its weights"):
            averaged = trained.averaged()
        with _trying("loading its weights into a copy"):
            fresh = self.setup.student()
            load_state(fresh, state_of(trained.bare))
            renew_caches(fresh.eval())
        self.check_same(
            "training",
            self.answer(trained.bare),
            self.answer(fresh),
            before,
            "are computed weights kept between calls in eval mode? give them a `train` that throws "
            "them away, or keep none",
        )
        if export:
            self.check_export(averaged)

    def watch(self, network: nn.Module) -> None:
        """Call the network at times from end to end, so that it is known whether it edits what it
        is given (see `call_intact`)."""
        low, high = time_range(network)
        with torch.no_grad(), evaluating(network), _trying("a call of the network"):
            for share in _TIMES:
                time = low + share * (min(high, 1.0) - low)
                with self.autocast():
                    call_network(network, self.x_t, time, self.cond, dtype=self.x_t.dtype)

    def loss(self, network: nn.Module) -> Tensor:
        """Of the student's x0, which a network with parameters in use has a gradient for."""
        x0 = self.x0_of(network)
        if not x0.requires_grad or x0.is_inference():
            raise ValueError(
                "expected an answer with a gradient for the network's parameters, got one without: "
                "is its forward under torch.no_grad() or torch.inference_mode()?"
            )
        return (x0 - self.x0).square().mean()

    def check_used(self, student: nn.Module) -> None:
        """Refuse a module that keeps what it computed of its parameters, so that they get a
        gradient in train mode only."""
        with _trying("a gradient of the network"):
            idle = _without_gradient(student, self.loss(student))
        keeping = [name for name in idle if _keeps_tensors(student, name)]
        if not keeping:
            return
        copy = self.setup.student().train()
        with _trying("a call in train mode"):
            idle = _without_gradient(copy, self.loss(copy))
        kept = [name for name in keeping if name not in idle]
        if kept:
            raise ValueError(
                "expected a network that computes its weights anew at each call, got one that in "
                f"eval mode keeps what it has computed of {first_names(kept)}; give its module a "
                "`train` that throws that away, or keep nothing"
            )

    def answer(self, network: nn.Module) -> Tensor:
        """x0 as the network implies it, without a gradient; a network that draws draws the same."""
        torch.manual_seed(0)
        with torch.no_grad(), _trying("a call of a copy"):
            return self.x0_of(network)

    def x0_of(self, network: nn.Module) -> Tensor:
        with self.autocast():
            return predict_x0(
                network, self.x_t, self.t, self.cond, pred_type=self.pred_type, dtype=self.x_t.dtype
            )

    def check_same(
        self, what: str, found: Tensor, expected: Tensor, before: Tensor, advice: str
    ) -> None:
        """Refuse an answer that differs by more than rounding from that of a network with the same
        weights; `before` says how far the updates moved it."""
        moved = float((expected - before).norm())
        allowed = _OF_MOVE * moved + _OF_ANSWER * float(expected.norm())
        error = float((found - expected).norm())
        # Written so that an error that is no number passes: the run says what diverges.
        if error > allowed:
            raise ValueError(
                f"expected a network that answers after {what} as a copy that loads its weights, "
                f"got answers that differ by {error:.2g}, where {_UPDATES} updates moved them by "
                f"{moved:.2g}; {advice}"
            )

    def check_export(self, averaged: nn.Module) -> None:
        """Write a student's folder and load it again."""
        cfg = self.setup.cfg
        before = self.answer(self.setup.student())
        with tempfile.TemporaryDirectory() as folder, _trying("exporting and loading a student"):
            export_student(
                folder,
                averaged,
                t_list=list(cfg.student.t_list),
                t_lists=cfg.student.t_lists if len(cfg.student.t_lists) > 1 else None,
                sample_type=cfg.student.sample_type,
                pred_type=self.pred_type,
                horizon=tuple(self.x0.shape[1:]),
            )
            given = None
            if has_custom_network(folder):
                given = network_to_load(cfg, self.setup.source)
            dtype = network_dtype(averaged, torch.float32)
            loaded = load_student(folder, self.device, dtype, network=given).network
        if has_prefix(self.cond):
            loaded = PrefixedNetwork(loaded, pred_type=self.pred_type)
        self.check_same(
            "its export",
            self.answer(loaded),
            self.answer(averaged),
            before,
            "is there a buffer, attribute or extra state that its state_dict() doesn't hold as "
            "tensors?",
        )


def _without_gradient(network: nn.Module, loss: Tensor) -> list[str]:
    """Names of trained parameters that the loss doesn't come from."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return [name for (name, _), x in zip(named, gradients, strict=True) if x is None]


def _keeps_tensors(network: nn.Module, name: str) -> bool:
    """Whether the module of a parameter holds tensors that are not stored."""
    module = network.get_submodule(name.rpartition(".")[0])
    kept = [module._buffers[leaf] for leaf in module._non_persistent_buffers_set]
    kept += [value for value in vars(module).values() if isinstance(value, Tensor)]
    return any(value is not None for value in kept)


def _check_kinds(network: nn.Module) -> None:
    """Refuse what no folder holds: extra state that is no JSON, and parameters and stored buffers
    of complex numbers, which the optimiser's kernel doesn't know either."""
    extra_state_of(network)
    state = state_of(network)
    names = [name for name, value in state.items() if value.is_complex()]
    if names:
        raise ValueError(
            "expected real parameters and stored buffers, got complex numbers in "
            f"{first_names(names)}; hold them as pairs (torch.view_as_real), or register a buffer "
            "with persistent=False"
        )


@contextlib.contextmanager
def _trying(what: str) -> Iterator[None]:
    """Inside, whatever goes wrong becomes a ValueError that says what was tried; memory that is
    missing stays what it is."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    # It is the user's code, which may raise anything.
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(
            f"the network can't be distilled: {what} failed with {kind}: {brief(error)}"
        ) from error
