"""Networks shared by two processes, through accelerate's own FSDP2 code, as a script
of both.

    python sharding.py folder [parts] [torch.float32] [torch.float64]

Accelerate shards on accelerators alone; told afterwards that it shards, it does so on a CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn

from fastgen._core.modules import frozen
from fastgen._core.processes import gathered, is_shard, leave_together, own, settle
from fastgen.config import EMAConfig, OptimizerConfig
from fastgen.training import accelerator as ours
from fastgen.training.trained_network import TrainedNetwork
from support import processes
from support.toy import ToyTeacher


class Sharding(Accelerator):
    """An accelerator that shards on a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, cpu_ram_efficient_loading=False
        )
        self.state.distributed_type = DistributedType.FSDP
        # Every later `AcceleratorState()` is made of this.
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def new(*, averaged: bool = True) -> tuple[TrainedNetwork, nn.Module]:
    """A sharded network in training and, apart from it, the very same one in one piece."""
    ema = EMAConfig(decay=0.5, dtype="float64") if averaged else None
    cfg = OptimizerConfig(lr=0.05, warmup_steps=0, clip_grad_norm=0.1)
    accelerator = ours.start_accelerator(1)
    return TrainedNetwork(
        ToyTeacher().double(), cfg, 9, accelerator, ema=ema
    ), ToyTeacher().double()


def loss(network: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x, z = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((6, 2, 4), (6, 1, 2))
    )
    return network(x, torch.full((6,), 0.5, dtype=torch.float64), z).square().mean()


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys() and not any(map(is_shard, a.values()))
    return max(float((value - b[name]).abs().max()) for name, value in a.items())


def parts() -> dict[str, Any]:
    """What the tests ask of networks, averages and states that are shared."""
    found: dict[str, Any] = {}
    network = train_side_by_side(found)
    count_bytes(network.cfg, found)
    go_on(network, found)
    judge_frozen(found)
    return found


def train_side_by_side(found: dict[str, Any]) -> TrainedNetwork:
    """Updates of a sharded network and, in plain torch, of the same in one piece; the sharded
    one."""
    network, plain = new()
    average = {name: value.clone() for name, value in plain.state_dict().items()}
    adam = torch.optim.AdamW(
        plain.parameters(), lr=0.05, betas=network.cfg.betas, weight_decay=network.cfg.weight_decay
    )
    found["first parameters are shards"] = all(map(is_shard, network.bare.parameters()))
    assert network.ema is not None
    found["shadow is shards"] = all(map(is_shard, network.ema.shadow.values()))
    for step in range(4):
        network.update(
            [lambda s=step: loss(network.network, s), lambda s=step: loss(network.network, s + 9)],
            step,
        )
        ((loss(plain, step) + loss(plain, step + 9)) / 2).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        for group in adam.param_groups:
            group["lr"] = network.cfg.lr_at(step, 9)
        adam.step()
        adam.zero_grad()
        average = {
            name: 0.5 * average[name] + 0.5 * value for name, value in plain.state_dict().items()
        }
    # A forward without backward leaves the gathered weights in place.
    with torch.no_grad():
        loss(network.network, 0)
    compare(network, plain, adam, average, found)
    return network


def compare(
    network: TrainedNetwork,
    plain: nn.Module,
    adam: torch.optim.Optimizer,
    average: dict[str, Tensor],
    found: dict[str, Any],
) -> None:
    """How far weights, moments and averages are from those in one piece."""
    state = network.tensors()
    found["weights"] = distance(
        {key[8:]: value for key, value in state.items() if key.startswith("weights.")},
        plain.state_dict(),
    )
    found["moments"] = max(
        float((state[f"optimizer.{i}.{name}"] - adam.state[p][name]).abs().max())
        for i, p in enumerate(plain.parameters())
        for name in ("exp_avg", "exp_avg_sq")
    )
    found["average"] = distance(network.averaged().state_dict(), average)
    other = ToyTeacher().double()
    assert network.ema is not None
    network.ema.copy_to(other)
    found["copy"] = distance(other.state_dict(), average)


def count_bytes(cfg: OptimizerConfig, found: dict[str, Any]) -> None:
    """What a process holds of a network whose five rows don't halve."""
    uneven = TrainedNetwork(nn.Linear(3, 5), cfg, 9, ours.start_accelerator(1), ema=EMAConfig())
    (uneven.network(torch.ones(2, 3)).sum()).backward()
    assert uneven.ema is not None
    held = {"weights": list(uneven.bare.parameters()), "ema": list(uneven.ema.shadow.values())}
    held |= {
        "gradients": [p.grad for p in held["weights"]],
        # Whole, as the host keeps it to make averages of.
        "host": list(uneven.averaged().parameters()),
    }
    found["bytes"] = {
        name: sum(own(value).nbytes for value in values) for name, values in held.items()
    }


def go_on(network: TrainedNetwork, found: dict[str, Any]) -> None:
    """One more update of the network and of another that has its state."""
    other, _ = new()
    other.update(loss(other.network, 3), 0)
    other.load_tensors({key: value.clone() for key, value in network.tensors().items()})
    for one in (network, other):
        one.update(loss(one.network, 7), 4)
    found["resumed"] = distance(network.tensors(), other.tensors())
    found["optimiser holds shards"] = all(
        is_shard(v["exp_avg"]) for v in other.optimizer.state_dict()["state"].values()
    )


def judge_frozen(found: dict[str, Any]) -> None:
    """A network whose first forward is frozen, forwards within and without `frozen` in turn."""
    judge, alone = new(averaged=False)
    x = torch.ones(6, 2, 4, dtype=torch.float64, requires_grad=True)
    z = torch.ones(6, 1, 2, dtype=torch.float64)
    t = torch.full((6,), 0.5, dtype=torch.float64)
    for _ in range(2):
        with frozen(judge.bare):
            made = judge.bare(x, t, z).square().mean()
        made.backward()
        settle(judge.bare)
        found.setdefault("leaked", []).append(
            sum(p.grad is not None for p in judge.bare.parameters())
        )
        # What FSDP notes at the first forward of what is to be reduced: nothing, if all was frozen
        # then.
        groups = judge.bare._get_fsdp_state()._fsdp_param_groups
        found["noted at the first forward"] = [str(group._orig_dtype) for group in groups]
        # Judged without a backward, its gathered weights stay in place: with the flags that they
        # had.
        with frozen(judge.bare):
            judge.bare(x.detach(), t, z)
        loss(judge.network, 1).backward()
        alone.zero_grad()
        loss(alone, 1).backward()
        grads = {name: gathered(p.grad) for name, p in judge.bare.named_parameters()}
        wanted = {name: p.grad for name, p in alone.named_parameters()}
        found.setdefault("gradient after frozen", []).append(distance(grads, wanted))
        judge.optimizer.zero_grad()


update = TrainedNetwork.update
sharded: set[bool] = set()
networks: set[TrainedNetwork] = set()


def watched(self: TrainedNetwork, *args: Any) -> Any:
    """`update`, which notes whether all that it trains is in shards."""
    networks.add(self)
    trained = [p for group in self.optimizer.param_groups for p in group["params"]]
    sharded.add(all(map(is_shard, trained)))
    return update(self, *args)


if __name__ == "__main__":
    ours.Accelerator = Sharding
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    if "parts" in sys.argv:
        found = parts()
        (folder / f"found-{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    dtypes = [dtype for dtype in (torch.float32, torch.float64) if str(dtype) in sys.argv]
    if dtypes:
        TrainedNetwork.update = watched
        for dtype in dtypes:
            processes.run(folder, dtype, 2)
        assert sharded == {True} and len(networks) == 4 * len(dtypes), (sharded, len(networks))
    leave_together()
