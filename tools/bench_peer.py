"""NVIDIA modelopt's `DMDPipeline` with its own defaults, for as many CPU seconds as a distillation
of this package took.

The peer has losses and no loop: it starts from the teacher's weights, without pairs. Its defaults
are those of its `DMDConfig`: one call, times shifted by 5, a fake score that is compared in x0, one
update in five for the student, no average. What it leaves to its user is as in
recipes/configs/fashion.yaml: batch, AdamW, rates that rise over 50 updates and fall by a cosine,
here over the seconds. It takes part where it can be imported (:mod:`bench_step` says how).
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench_budgets import REPORT, read_report
from fastgen._core.files import write_file
from fastgen._core.seeds import generator_for
from fastgen.config import DistillConfig
from fastgen.config.files import load_config
from fastgen.config.training import OptimizerConfig
from fastgen.data.tasks.fashion import FashionTask
from fastgen.export.networks import load_network
from fastgen.jobs.evaluation import student_sampler

RECIPES = Path(__file__).parents[1] / "recipes"


class Trained:
    """A network with AdamW, whose rate follows the share of the seconds that is over."""

    def __init__(self, network: nn.Module, config: OptimizerConfig) -> None:
        self.network = network.train()
        self.config = config
        self.updates = 0
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def update(self, loss: Tensor, progress: float) -> None:
        """One update, `progress` in [0, 1]."""
        config = self.config
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        rate = config.lr * (config.final_lr_ratio + (1.0 - config.final_lr_ratio) * cosine)
        rise = min(1.0, (self.updates + 1) / max(1, config.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * rise
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_grad_norm)
        self.optimizer.step()
        self.updates += 1


def pipeline_of(student: nn.Module, teacher: nn.Module, fake_score: nn.Module) -> Any:
    """The peer's pipeline of networks called `net(x_t, t, cond)`, with its own defaults.

    Raises:
        ImportError: modelopt can't be imported.
    """
    import modelopt.torch.fastgen as peer  # pyright: ignore[reportMissingImports]

    class Positional(peer.DMDPipeline):
        def _call_model(
            self, model: Any, hidden_states: Any, timestep: Any, encoder_hidden_states: Any = None
        ) -> Any:
            return model(hidden_states, timestep.to(hidden_states.dtype), encoder_hidden_states)

    return Positional(student, teacher, fake_score, peer.DMDConfig())


def distil_by_peer(run: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Train for so many CPU seconds; a report with the keys of a run's own that benches read. It is
    kept in `run`/report/report.json, and read if it is there already.

    Args:
        run: folder.
        seed: of weights and draws.
        seconds: of the CPU.

    Raises:
        ImportError: modelopt can't be imported, and there is no report.
    """
    file = run / REPORT
    if file.exists():
        return read_report(run)
    torch.set_num_threads(1)
    torch.manual_seed(seed)  # the peer draws its times and noise from the global generator
    task = FashionTask()
    teacher = load_network(RECIPES / "teachers" / "fashion")[0].eval()
    student = copy.deepcopy(teacher)
    fake_score = copy.deepcopy(teacher)
    pipeline = pipeline_of(student, teacher.requires_grad_(False), fake_score)
    spent, evaluations = _train(pipeline, task, seed, seconds)
    t_list = [pipeline.config.sample_t_cfg.max_t, 0.0]
    scores = task.evaluate(student_sampler(student.eval(), task.train, t_list))
    found = {
        "student": {"1": scores},
        "kd": {},
        "dmd": {"1": scores},
        "selected": "dmd",
        "validation": {"dmd": {}},
        "teacher": {},
        "floor": {},
        "seconds": {"dmd_cpu": spent},
        "teacher_evaluations": {"dmd": evaluations, "report": 0, "total": evaluations},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps(found, indent=1).encode())
    return found


def _train(pipeline: Any, task: FashionTask, seed: int, seconds: float) -> tuple[float, int]:
    """Train student and fake score in turns; the CPU seconds that it took, and the rows that the
    teacher was asked for, one for each sample of a student's update."""
    train = load_config(DistillConfig, RECIPES / "configs" / "fashion.yaml").train
    student = Trained(pipeline.student, train.student_optimizer)
    fake_score = Trained(pipeline.fake_score, train.fake_score_optimizer)
    x0, labels = task.train.network_inputs()
    started = time.process_time()
    progress = 0.0
    for step in itertools.count():
        generator = generator_for(seed, "peer", step)
        rows = torch.randint(len(x0), (train.batch_size,), generator=generator)
        noise = torch.randn(len(rows), *x0.shape[1:], generator=generator)
        batch = (x0[rows], noise, labels[rows])
        # One of so many updates is the student's.
        if (step + 1) % pipeline.config.student_update_freq == 0:
            student.update(pipeline.compute_student_loss(*batch)["total"], progress)
        else:
            fake_score.update(pipeline.compute_fake_score_loss(*batch)["total"], progress)
        progress = (time.process_time() - started) / seconds
        if progress >= 1.0:
            break
    return progress * seconds, student.updates * train.batch_size
