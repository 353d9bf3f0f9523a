"""The trainer knows accelerate by one small object of ours: without accelerate it trains the very
same run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastgen.records.log import read_log, timeless
from fastgen.training.accelerator import start_accelerator
from fastgen.training.processes import OneProcess, Processes
from support.launching import TESTS, forked, launched
from support.runs import Counter, follow

# `python job.py <run_dir> [with]`: a toy's KD and DMD, all that a trainer does, with or without
# accelerate.
JOB = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
if "with" not in sys.argv:
    sys.modules["accelerate"] = None  # whoever imports it gets an ImportError

from pathlib import Path

import torch

from fastgen.config import DMDConfig, EMAConfig, LoopConfig, OptimizerConfig
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.training.choice import Validation
from fastgen.training.draws import Draws
from fastgen.training.processes import OneProcess
from fastgen.training.trained_network import TrainedNetwork
from fastgen.training.trainer import Trainer
from support.toy import ToyTask, ToyTeacher

if "with" in sys.argv:
    from fastgen.training.accelerator import start_accelerator
    processes = start_accelerator(1)
else:
    processes = OneProcess()
torch.set_num_threads(1)
task = ToyTask()
x0, cond = task.train.network_inputs()
dmd = DMDConfig(student_steps=2, fake_score_warmup_steps=2)
optimizer = OptimizerConfig(lr=0.01, warmup_steps=0)


def trained(network):
    return TrainedNetwork(network, optimizer, 6, processes, ema=EMAConfig(decay=0.9))


def kd():
    states = torch.stack([x0 + t for t in dmd.t_list], 1)
    draws = Draws(0, "kd", processes, 8, accumulation=2)
    return KnowledgeDistillation(trained(ToyTeacher()), states, cond, dmd, 6, 0.02, draws)


def matching():
    network = ToyTeacher()
    network.load_state_dict(trainer.result("kd"))
    student = trained(network)
    fake_score = trained(create_fake_score(ToyTeacher(), num_rungs=2))
    pipeline = DMDPipeline(
        student.network, ToyTeacher(), fake_score.network, dmd, same_draws=True
    )
    draws = Draws(0, "dmd", processes, 8)
    return DistributionMatching(student, fake_score, pipeline, x0, cond, dmd, 4, draws)


def evaluate(network):
    with torch.no_grad():
        return Validation({{"energy": float(network(x0, 0.5, cond).square().mean())}})


run_dir = Path(sys.argv[1])
run_dir.mkdir()
trainer = Trainer(
    {{"kd": kd, "dmd": matching}},
    run_dir,
    LoopConfig(batch_size=8, log_every=1, evaluate_every=3, checkpoint_every=2),
    processes,
    evaluate=evaluate,
    primary="energy",
    seed=0,
    resume=False,
)
trainer.run()
assert ("with" in sys.argv) == bool(sys.modules.get("accelerate"))
"""


def trained(folder: Path, *options: str) -> Path:
    """The job's run folder."""
    (folder / "job.py").write_text(JOB)
    run_dir = folder / "-".join(["run", *options])
    if "with" in options:
        (done,) = forked(folder / "job.py", run_dir, *options, processes=1)
    else:
        # A fork has accelerate loaded.
        done = launched(folder / "job.py", run_dir, *options)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.slow
def test_a_run_without_accelerate_is_that_of_one_process_with_it_bit_for_bit(tmp_path):
    alone = trained(tmp_path)
    accelerated = trained(tmp_path, "with")
    files = sorted(path.relative_to(alone) for path in alone.rglob("*.safetensors"))
    assert len(files) > 4
    for file in files:
        one = load_file(alone / file)
        two = load_file(accelerated / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in one.items()), file
    rows = [timeless(row) for row in read_log(alone)]
    assert rows == [timeless(row) for row in read_log(accelerated)]
    assert {row["stage"] for row in rows} == {"kd", "dmd"}


@pytest.mark.parametrize("make", [OneProcess, lambda: start_accelerator(1)])
def test_one_process_has_nobody_to_ask(make):
    processes: Processes = make()
    x = torch.arange(3.0)
    assert torch.equal(processes.gather(x), x) and torch.equal(processes.mean(x), x)
    assert processes.of_main({"energy": 0.5}) == {"energy": 0.5}
    assert (processes.process_index, processes.num_processes) == (0, 1)
    assert processes.is_main_process and not processes.is_fsdp2
    assert processes.mixed_precision == "no"
    weight = torch.ones(3, requires_grad=True)
    with processes.autocast():
        processes.backward((weight * x).sum())
    assert torch.equal(weight.grad, x)


def test_without_accelerate_a_tracker_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="expected train.tracker=null without accelerate, got"):
        follow(
            tmp_path,
            [0.5] * 9,
            stages=[Counter()],
            processes=OneProcess(),
            tracker="tensorboard",
        )
