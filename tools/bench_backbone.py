"""The equivariant backbone against its bars: speed, exactness, size, memory, construction.

Every comparison runs in this one process on one thread, its variants taking turns A-B-A-B; what is
compared are medians over the rounds. The peer symm-learning takes part where it can be imported,
say by ``pip install --no-deps --target DIR symm-learning==0.8.1`` and ``PYTHONPATH=DIR``.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fastgen.models import (
    CondTransformerRegressor,
    check_equivariance,
    eCondTransformerRegressor,
    eLinear,
    eRMSNorm,
    fold,
    parse_group,
    parse_representation,
)
from fastgen.models.emaps import InvariantLift, ePositionTable
from fastgen.models.representations import degrees_of_freedom

CONFIGS = {
    "C4 D=128": ("C4", 128),
    "D4 D=128": ("D4", 128),
    "D4 D=256": ("D4", 256),
    "A5 D=240": ("Icosahedral", 240),
}
PARTS = ("exact", "size", "speed")
LAYERS = 4
HEADS = 4
T_X = 16
T_Z = 3
WIDE = 240  # from here on the bars of the irrep basis hold
Step = Callable[[], Any]


# ---- The networks --------------------------------------------------------------------------------


def representations(group_name: str) -> tuple[Representation, Representation]:
    """A small task: vectors of the plane or of space to denoise, two such vectors and a number as
    the condition."""
    group = parse_group(group_name)
    return parse_representation(group, ["standard"]), parse_representation(
        group, ["standard", "standard", "trivial"]
    )


def equivariant(config: str, basis: str) -> eCondTransformerRegressor:
    torch.manual_seed(0)
    group, width = CONFIGS[config]
    rep, cond = representations(group)
    return eCondTransformerRegressor(
        rep, cond, rep, T_X, T_Z, LAYERS, HEADS, width, 0.0, 0.0, basis=basis
    )


def dense(config: str) -> CondTransformerRegressor:
    torch.manual_seed(0)
    group, width = CONFIGS[config]
    rep, cond = representations(group)
    return CondTransformerRegressor(
        rep.size, rep.size, cond.size, T_X, T_Z, LAYERS, HEADS, width, 0.0, 0.0
    )


def peer(config: str) -> nn.Module | None:
    """symm-learning's network of the same sizes, or None without that package."""
    try:
        from symm_learning.models.control.econd_transformer import (  # pyright: ignore[reportMissingImports]
            eCondTransformer,
        )
    except ImportError:
        return None
    torch.manual_seed(0)
    group, width = CONFIGS[config]
    rep, cond = representations(group)
    return eCondTransformer(rep, cond, rep, T_X, T_Z, LAYERS, HEADS, width, 0.0, 0.0)


class TorchDecoder(nn.Module):
    """torch's decoder of the same layers and widths, alone: its inputs are embedded already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(
            width,
            HEADS,
            4 * width,
            dropout=0.0,
            activation=F.gelu,
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(width))

    def forward(self, X: Tensor, opt_step: Tensor, Z: Tensor) -> Tensor:
        return self.decoder(X, Z)


def inputs(model: nn.Module, config: str, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    group, width = CONFIGS[config]
    rep, cond = representations(group)
    plain = isinstance(model, TorchDecoder)
    X = torch.randn(batch, T_X, width if plain else rep.size, generator=generator)
    Z = torch.randn(batch, T_Z + plain, width if plain else cond.size, generator=generator)
    return X, torch.rand(batch, generator=generator), Z


def shaken(model: nn.Module) -> nn.Module:
    """Move every parameter off its initial value: biases, scales and the time's modulation too."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator))
    return model


# ---- What is measured ----------------------------------------------------------------------------


def training_step(model: nn.Module, arguments: tuple[Tensor, ...]) -> Step:
    """Forward, backward and AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(*arguments).square().mean().backward()
        optimizer.step()

    return step


def evaluation(model: nn.Module, arguments: tuple[Tensor, ...]) -> Step:
    model.eval()

    @torch.no_grad()
    def step() -> None:
        model(*arguments)

    return step


def take_turns(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of each variant; in every round all run once, in order."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for n in range(rounds + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if n >= 2:  # the first rounds warm caches and allocators up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def saved_bytes(model: nn.Module, arguments: tuple[Tensor, ...]) -> int:
    """Bytes that the graph of one forward keeps for the backward, each storage once; a dense
    network's weights and what stands for them in an equivariant one included."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = model(*arguments)
    del y
    return sum(storages.values())


def dof(model: nn.Module) -> int:
    """Degrees of freedom by characters, layer by layer."""
    total = 0
    for module in model.modules():
        if isinstance(module, (eLinear, InvariantLift, ePositionTable, eRMSNorm)):
            invariants = degrees_of_freedom(
                module.out_rep.group.trivial_representation, module.out_rep
            )
            for name, p in module.named_parameters(recurse=False):
                if isinstance(module, eLinear) and name == "weight":
                    total += degrees_of_freedom(module.in_rep, module.out_rep)
                elif isinstance(module, InvariantLift) and name == "weight":
                    total += module.in_features * invariants
                else:
                    total += (len(p) if isinstance(module, ePositionTable) else 1) * invariants
        else:
            total += sum(p.numel() for p in module.parameters(recurse=False))
    return total


def products(model: nn.Module, arguments: tuple[Tensor, ...]) -> int:
    """Floating-point operations of the matrix products of one forward; in training mode, since the
    counter doesn't see into torch's fast path for inference."""
    model.train()
    with FlopCounterMode(display=False) as counter:
        model(*arguments)
    return counter.get_total_flops()


def where_time_goes(step: Step, rows: int = 6) -> dict[str, float]:
    """Milliseconds a step of the costliest operations, each without those it calls."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            step()
    costs = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return {
        event.key.removeprefix("aten::"): event.self_cpu_time_total / 3000 for event in costs[:rows]
    }


def relative(y: Tensor, reference: Tensor) -> float:
    return ((y - reference).norm() / reference.norm()).item()


# ---- The bars ------------------------------------------------------------------------------------


class Table:
    """Rows of (what, number, bar, met); a bar is the largest number that meets it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.seconds: dict[str, dict[str, float]] = {}
        self.profiles: dict[str, dict[str, dict[str, float]]] = {}

    def add(self, name: str, got: float, bar: float | None, *, at_least: bool = False) -> bool:
        """Returns whether the bar is met or absent."""
        met = None if bar is None else got >= bar if at_least else got <= bar
        self.rows.append({"name": name, "got": got, "bar": bar, "at_least": at_least, "met": met})
        sign = ">=" if at_least else "<="
        verdict = "       " if met is None else "met    " if met else "MISSED "
        print(
            f"{verdict}{name:<62}{got:>11.3g}" + ("" if bar is None else f"  {sign} {bar:g}"),
            flush=True,
        )
        return met is not False

    def take_turns(self, name: str, steps: dict[str, Step], rounds: int) -> dict[str, float]:
        self.seconds[name] = take_turns(steps, rounds)
        return self.seconds[name]


class Comparison:
    """Two of the networks A-B-A-B: one row with the ratio of their median seconds. Where that
    misses its bar, what it would be if time were proportional to the matrix products, and where the
    time goes."""

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
        t = self.table.take_turns(name, steps, self.rounds)
        if self.table.add(name, t[a] / t[b], bar, at_least=at_least):
            return
        self.table.profiles[name] = {k: where_time_goes(step) for k, step in steps.items()}
        for k, costs in self.table.profiles[name].items():
            print(
                f"           {k}, ms: " + ", ".join(f"{op} {ms:.2g}" for op, ms in costs.items()),
                flush=True,
            )
        counts = {
            k: products(self.models[k], self.arguments[k]) for k in (a, b)
        }  # last: it changes the mode
        self.table.add(f"{name}, products", counts[a] / counts[b], None)


def speed(table: Table, config: str, batches: list[int], rounds: int) -> None:
    wide = CONFIGS[config][1] >= WIDE
    for batch in batches:
        large = batch > 1
        # A step of one sample takes a few milliseconds: more rounds cost nothing.
        turns = rounds if batch > 1 else 4 * rounds
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
        compare = Comparison(
            table, f"{config} B={batch} train", turns, training_step, models, arguments
        )
        compare("gathered", "dense", 1.15 if large else None)
        compare("irrep", "dense", 0.65 if wide and large else None)
        compare("dense", "torch", 1.05 if large else None)
        if other is not None:
            compare("symm", "gathered", {1: 4.0, 64: 2.0, 256: 1.5}.get(batch), at_least=True)
            compare("symm", "irrep", 2.5 if wide and large else None, at_least=True)
        compare = Comparison(
            table, f"{config} B={batch} eval", turns, evaluation, models, arguments
        )
        compare("folded", "dense", 1.05 if large else None)
        compare("gathered", "dense", None)
        compare("irrep", "dense", None)
        compare("dense", "torch", 1.05 if large else None)
        if other is not None:
            compare("symm", "folded", 1.4 if large else 2.0, at_least=True)


def exactness(table: Table, config: str) -> None:
    for basis in ("regular", "irrep"):
        model = shaken(equivariant(config, basis)).eval()
        X, t, Z = inputs(model, config, 8)
        with torch.no_grad():
            table.add(
                f"{config} {basis}: fold against unfolded",
                relative(fold(model)(X, t, Z), model(X, t, Z)),
                2e-6,
            )
        table.add(
            f"{config} {basis}: equivariance error, float32",
            max(check_equivariance(model).values()),
            2e-6,
        )
        error = max(check_equivariance(model.double()).values())
        table.add(f"{config} {basis}: equivariance error, float64", error, 1e-12)


def size(table: Table, config: str, rounds: int) -> None:
    plain = dense(config)
    reference = saved_bytes(plain, inputs(plain, config, 64))
    for basis in ("regular", "irrep"):
        model = equivariant(config, basis)
        numbers = sum(p.numel() for p in model.parameters())
        state = sum(v.numel() * v.element_size() for v in model.state_dict().values())
        table.add(f"{config} {basis}: parameters / degrees of freedom", numbers / dof(model), 1.0)
        table.add(f"{config} {basis}: state / degrees of freedom", state / (4 * dof(model)), 1.1)
        saved = saved_bytes(model, inputs(model, config, 64))
        table.add(f"{config} {basis}: saved for backward / dense, B=64", saved / reference, 1.05)
        kept = sum({id(b): b.numel() * b.element_size() for b in model.buffers()}.values())
        table.add(
            f"{config} {basis}: constants, bytes / (4 D^2)",
            kept / (4 * CONFIGS[config][1] ** 2),
            None,
        )
        build = {
            "dense": lambda: dense(config),
            "ours": lambda basis=basis: equivariant(config, basis),
        }
        t = table.take_turns(f"{config} {basis} construction", build, rounds)
        table.add(f"{config} {basis}: construction / dense", t["ours"] / t["dense"], 5.0)
        if config == "D4 D=256":
            table.add(f"{config} {basis}: construction, seconds", t["ours"], 0.5)


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
