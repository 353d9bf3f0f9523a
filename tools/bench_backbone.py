"""The equivariant backbone against its bars: speed, exactness, size, memory, construction.

Every comparison runs in this one process on one thread, its variants taking turns A-B-A-B. What is
compared are medians over the rounds. The peer symm-learning takes part where it can be imported,
say by ``pip install --no-deps --target DIR symm-learning==0.8.1`` and ``PYTHONPATH=DIR``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench_measures import (
    Step,
    evaluation,
    medians,
    products,
    relative,
    saved_bytes,
    take_turns,
    training_step,
    where_time_goes,
)
from bench_networks import CONFIGS, TorchDecoder, dense, equivariant, inputs, peer, shaken
from fastgen.models import check_equivariance, eLinear, eRMSNorm, fold
from fastgen.models.emaps import InvariantLift, ePositionTable
from fastgen.models.representations import degrees_of_freedom

PARTS = ("exact", "size", "speed")
# The width from which on the bars of the irrep basis hold.
WIDE = 240


class Table:
    """Rows of (what, number, bar, met). A bar is the largest number that meets it, or with
    `at_least` the smallest."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.seconds: dict[str, dict[str, float]] = {}
        self.profiles: dict[str, dict[str, dict[str, float]]] = {}

    def add(self, name: str, got: float, bar: float | None, *, at_least: bool = False) -> bool:
        """Add a row and print it; returns whether the bar is met or absent."""
        met = None
        verdict = ""
        against = ""
        if bar is not None:
            met = got >= bar if at_least else got <= bar
            verdict = "met" if met else "MISSED"
            against = f"  {'>=' if at_least else '<='} {bar:g}"
        self.rows.append({"name": name, "got": got, "bar": bar, "at_least": at_least, "met": met})
        print(f"{verdict:<7}{name:<62}{got:>11.3g}{against}", flush=True)
        return met is not False

    def take_turns(self, name: str, steps: dict[str, Step], rounds: int) -> dict[str, float]:
        """Median seconds of each variant, which the table keeps."""
        self.seconds[name] = medians(take_turns(steps, rounds))
        return self.seconds[name]


class Comparison:
    """Two networks that take turns: one row with the ratio of their median seconds.

    Where the ratio misses its bar, the table also gets what it would be if time were proportional
    to the matrix products, and where the time goes.
    """

    def __init__(
        self,
        table: Table,
        name: str,
        rounds: int,
        make: Callable[[nn.Module, tuple[Tensor, ...]], Step],
        models: dict[str, nn.Module],
        arguments: dict[str, tuple[Tensor, ...]],
    ) -> None:
        self.table = table
        self.name = name
        self.rounds = rounds
        self.make = make
        self.models = models
        self.arguments = arguments

    def __call__(self, a: str, b: str, bar: float | None, *, at_least: bool = False) -> None:
        name = f"{self.name}: {a} / {b}"
        steps = {k: self.make(self.models[k], self.arguments[k]) for k in (a, b)}
        seconds = self.table.take_turns(name, steps, self.rounds)
        if self.table.add(name, seconds[a] / seconds[b], bar, at_least=at_least):
            return
        self.table.profiles[name] = {k: where_time_goes(step) for k, step in steps.items()}
        for k, costs in self.table.profiles[name].items():
            shown = ", ".join(f"{op} {ms:.2g}" for op, ms in costs.items())
            print(f"           {k}, ms: {shown}", flush=True)
        # Last, since it changes the mode of the networks.
        counts = {k: products(self.models[k], self.arguments[k]) for k in (a, b)}
        self.table.add(f"{name}, products", counts[a] / counts[b], None)


def speed(table: Table, config: str, batches: list[int], rounds: int) -> None:
    """Rows of training and evaluation for each size of the batch."""
    for batch in batches:
        models: dict[str, nn.Module] = {
            "dense": dense(config),
            "gathered": equivariant(config, "regular"),
            "irrep": equivariant(config, "irrep"),
            "torch": TorchDecoder(CONFIGS[config][1]),
        }
        other = peer(config)
        if other is not None:
            models["symm"] = other
        arguments = {name: inputs(model, config, batch) for name, model in models.items()}
        models["folded"] = fold(models["gathered"])
        arguments["folded"] = arguments["dense"]
        # A step of one sample takes a few milliseconds: more rounds cost nothing.
        turns = rounds if batch > 1 else 4 * rounds
        compare = Comparison(
            table, f"{config} B={batch} train", turns, training_step, models, arguments
        )
        compare_training(compare, config, batch)
        compare = Comparison(
            table, f"{config} B={batch} eval", turns, evaluation, models, arguments
        )
        compare_evaluation(compare, batch)


def compare_training(compare: Comparison, config: str, batch: int) -> None:
    large = batch > 1
    wide = CONFIGS[config][1] >= WIDE
    compare("gathered", "dense", 1.15 if large else None)
    compare("irrep", "dense", 0.65 if wide and large else None)
    compare("dense", "torch", 1.05 if large else None)
    if "symm" in compare.models:
        compare("symm", "gathered", {1: 4.0, 64: 2.0, 256: 1.5}.get(batch), at_least=True)
        compare("symm", "irrep", 2.5 if wide and large else None, at_least=True)


def compare_evaluation(compare: Comparison, batch: int) -> None:
    large = batch > 1
    compare("folded", "dense", 1.05 if large else None)
    compare("gathered", "dense", None)
    compare("irrep", "dense", None)
    compare("dense", "torch", 1.05 if large else None)
    if "symm" in compare.models:
        compare("symm", "folded", 1.4 if large else 2.0, at_least=True)


def exactness(table: Table, config: str) -> None:
    """Rows of equivariance errors, and of the folded network against the unfolded one."""
    for basis in ("regular", "irrep"):
        name = f"{config} {basis}"
        model = shaken(equivariant(config, basis)).eval()
        X, t, Z = inputs(model, config, 8)
        with torch.no_grad():
            error = relative(fold(model)(X, t, Z), model(X, t, Z))
        table.add(f"{name}: fold against unfolded", error, 2e-6)
        error = max(check_equivariance(model).values())
        table.add(f"{name}: equivariance error, float32", error, 2e-6)
        error = max(check_equivariance(model.double()).values())
        table.add(f"{name}: equivariance error, float64", error, 1e-12)


def size(table: Table, config: str, rounds: int) -> None:
    """Rows of parameters, memory and construction."""
    plain = dense(config)
    reference = saved_bytes(plain, inputs(plain, config, 64))
    width = CONFIGS[config][1]
    for basis in ("regular", "irrep"):
        name = f"{config} {basis}"
        model = equivariant(config, basis)
        numbers = sum(p.numel() for p in model.parameters())
        table.add(f"{name}: parameters / degrees of freedom", numbers / dof(model), 1.0)
        state = sum(v.numel() * v.element_size() for v in model.state_dict().values())
        table.add(f"{name}: state / degrees of freedom", state / (4 * dof(model)), 1.1)
        saved = saved_bytes(model, inputs(model, config, 64))
        table.add(f"{name}: saved for backward / dense, B=64", saved / reference, 1.05)
        kept = sum({id(b): b.numel() * b.element_size() for b in model.buffers()}.values())
        table.add(f"{name}: constants, bytes / (4 D^2)", kept / (4 * width**2), None)
        build = {
            "dense": lambda: dense(config),
            "ours": lambda basis=basis: equivariant(config, basis),
        }
        seconds = table.take_turns(f"{name} construction", build, rounds)
        table.add(f"{name}: construction / dense", seconds["ours"] / seconds["dense"], 5.0)
        if config == "D4 D=256":
            table.add(f"{name}: construction, seconds", seconds["ours"], 0.5)


def dof(model: nn.Module) -> int:
    """Degrees of freedom of a network by characters, layer by layer."""
    total = 0
    for module in model.modules():
        if not isinstance(module, (eLinear, InvariantLift, ePositionTable, eRMSNorm)):
            total += sum(p.numel() for p in module.parameters(recurse=False))
            continue
        trivial = module.out_rep.group.trivial_representation
        invariants = degrees_of_freedom(trivial, module.out_rep)
        for name, p in module.named_parameters(recurse=False):
            if isinstance(module, eLinear) and name == "weight":
                total += degrees_of_freedom(module.in_rep, module.out_rep)
            elif isinstance(module, InvariantLift) and name == "weight":
                total += module.in_features * invariants
            elif isinstance(module, ePositionTable):
                total += len(p) * invariants
            else:
                total += invariants
    return total


def backbone(
    configs: list[str], batches: list[int], rounds: int, parts: list[str]
) -> dict[str, Any]:
    """Measure and print; returns what goes into the JSON file."""
    torch.set_num_threads(1)
    table = Table()
    try:
        version = importlib.metadata.version("symm-learning")
    except importlib.metadata.PackageNotFoundError:
        version = None
        print("symm-learning cannot be imported: its rows are left out")
    for config in configs:
        if "exact" in parts:
            exactness(table, config)
        if "size" in parts:
            size(table, config, rounds)
        if "speed" in parts:
            speed(table, config, batches, rounds)
    missed = [row["name"] for row in table.rows if row["met"] is False]
    print(f"{sum(row['met'] is True for row in table.rows)} bars met, {len(missed)} missed")
    return {
        "torch": torch.__version__,
        "symm-learning": version,
        "rounds": rounds,
        "rows": table.rows,
        "median seconds": table.seconds,
        "profiles of missed bars, ms": table.profiles,
    }
