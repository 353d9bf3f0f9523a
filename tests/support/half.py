"""A distillation in bf16, watched from inside the network, as a script of one process or of two."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from fastgen._core.processes import leave_together
from fastgen.methods.matching import DistributionMatching
from fastgen.training import accelerator as ours
from support import processes
from support.processes import Branching
from support.sharding import Sharding

seen: dict[str, set[str]] = {
    "times": set(),
    "products": set(),
    "answers": set(),
    "losses": set(),
    "average is exact": set(),
    "state": set(),
}


class Watched(Branching):
    """Notes the dtypes of its time and, where it is trained, of its matrix product."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        seen["times"].add(str(t.dtype))
        answer = super().forward(x_t, t, cond)
        # In training: judges of a sample are called without gradients, or with one in their input.
        if answer.requires_grad and not x_t.requires_grad:
            seen["products"].add(str(answer.dtype))
        return answer


class Watching(Accelerator):
    """Notes the dtype of each loss."""

    def backward(self, loss: Tensor, **kwargs) -> None:
        seen["losses"].add(str(loss.dtype))
        super().backward(loss, **kwargs)


class WatchingShards(Watching, Sharding):
    """The same for shards."""


update = DistributionMatching.update


def watched(self: DistributionMatching, step: int) -> dict:
    """`update`, which notes what leaves the student in training, and compares its average with the
    weights' own answer."""
    logs = update(self, step)
    with torch.no_grad():
        x = torch.ones(3, 2, 4)
        t = torch.full((3,), 0.999)
        z = torch.ones(3, 1, 2)
        seen["answers"].add(str(self.student.network(x, t, z).dtype))
        average = self.averaged()
        plain = Branching()
        plain.load_state_dict(average.state_dict())
        exact = torch.equal(average(x, t, z), plain(x, t, z))
    seen["average is exact"].add(str(exact))
    tensors = self.student.tensors().values()
    seen["state"].update(str(x.dtype) for x in tensors if x.is_floating_point())
    return logs


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sharded = "shards" in sys.argv
    ours.Accelerator = WatchingShards if sharded else Watching
    processes.Branching = Watched
    DistributionMatching.update = watched
    processes.run(folder, torch.float32, 2)
    found = {key: sorted(values) for key, values in seen.items()}
    if ours.start_accelerator(1).is_main_process:
        (folder / "found.json").write_text(json.dumps(found))
    leave_together()
