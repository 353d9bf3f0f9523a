"""One iteration of DMD2 beside that of NVIDIA's modelopt, with the same networks, batch, losses and
optimisers.

An iteration is one student update, two fake-score updates and the student's moving average; an
update is forward, backward, clipping and AdamW. Each package keeps its own schedule: here the first
fake-score update takes the samples that the student was just trained on, the peer makes new ones.
The two take turns. The peer takes part where it can be imported, say by ``pip install --no-deps
--target DIR nvidia-modelopt==0.47.0 omegaconf pulp rich`` and ``PYTHONPATH=DIR``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench_measures import medians, take_turns
from fastgen.config import DMDConfig, EMAConfig
from fastgen.dmd import DMDPipeline, Generated
from fastgen.ema import ExponentialMovingAverage
from fastgen.models import CondTransformerRegressor

BATCH = 128
T_X = 4
D_X = 8
T_Z = 2
D_Z = 2
WIDTHS = (64, 128)
FAKE_UPDATES = 2
# Most seconds of an iteration, relative to the peer's.
BAR = 0.9


def network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return CondTransformerRegressor(D_X, D_X, D_Z, T_X, T_Z, 3, 4, width, 0.0, 0.0)


class Contestant:
    """Three networks with their optimisers and one way of computing the losses."""

    def __init__(self, width: int, rungs: int, losses: Callable[..., Any]) -> None:
        self.student = network(width, 0)
        self.teacher = network(width, 1).requires_grad_(False).eval()
        self.fake_score = network(width, 2)
        student_loss, fake_loss, average = losses(
            self.student, self.teacher, self.fake_score, rungs
        )
        self.student_loss = student_loss
        self.fake_loss = fake_loss
        self.average = average
        self.optimizers = {
            net: torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.0, 0.99), fused=True)
            for net in (self.student, self.fake_score)
        }
        self.iteration = 0

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.iteration)
        self.iteration += 1
        x0 = torch.randn(BATCH, T_X, D_X, generator=generator)
        cond = torch.randn(BATCH, T_Z, D_Z, generator=generator)
        loss, made = self.student_loss(x0, torch.randn(x0.shape, generator=generator), cond)
        self._update(self.student, loss)
        self.average(self.iteration)
        for _ in range(FAKE_UPDATES):
            noise = torch.randn(x0.shape, generator=generator)
            self._update(self.fake_score, self.fake_loss(x0, noise, cond, made))
            made = None

    def _update(self, net: nn.Module, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        self.optimizers[net].step()
        self.optimizers[net].zero_grad(set_to_none=True)


def ours(
    student: nn.Module, teacher: nn.Module, fake_score: nn.Module, rungs: int
) -> tuple[Any, Any, Any]:
    """The student's loss (with its samples), the fake score's, and the moving average, by
    fastgen."""
    config = DMDConfig(
        student_steps=rungs, student_sample_type="sde", fake_score_rung_conditioned=False
    )
    pipeline = DMDPipeline(student, teacher, fake_score, config)
    ema = ExponentialMovingAverage(student, EMAConfig(decay=0.99))

    def student_loss(*batch: Tensor) -> tuple[Tensor, Generated]:
        made = pipeline.generate(*batch)
        return pipeline.compute_student_loss(*batch, generated=made)["total"], made.detach()

    def fake_loss(x0: Tensor, noise: Tensor, cond: Tensor, made: Generated | None) -> Tensor:
        return pipeline.compute_fake_score_loss(x0, noise, cond, generated=made)["total"]

    return student_loss, fake_loss, lambda iteration: ema.update(student, iteration=iteration)


def modelopt(
    student: nn.Module, teacher: nn.Module, fake_score: nn.Module, rungs: int
) -> tuple[Any, Any, Any]:
    """The same by modelopt."""
    import modelopt.torch.fastgen as peer  # pyright: ignore[reportMissingImports]

    class Positional(peer.DMDPipeline):
        def _call_model(
            self, model: Any, hidden_states: Any, timestep: Any, encoder_hidden_states: Any = None
        ) -> Any:
            return model(hidden_states, timestep.to(hidden_states.dtype), encoder_hidden_states)

    times: dict[str, Any] = {"time_dist_type": "uniform", "min_t": 0.02, "max_t": 0.98}
    if rungs > 1:
        times["t_list"] = list(DMDConfig(student_steps=rungs).t_list)
    config = peer.DMDConfig(
        pred_type="flow",
        fake_score_pred_type="flow",
        num_train_timesteps=None,
        sample_t_cfg=times,
        student_sample_steps=rungs,
        student_sample_type="sde",
        backward_simulation=rungs > 1,
        ema={"decay": 0.99, "fsdp2": False},
    )
    pipeline = Positional(student, teacher, fake_score, config)
    return (
        lambda *batch: (pipeline.compute_student_loss(*batch)["total"], None),
        lambda x0, noise, cond, made: pipeline.compute_fake_score_loss(x0, noise, cond)["total"],
        lambda iteration: pipeline.update_ema(iteration=iteration),
    )


def run_step(rounds: int) -> dict[str, Any]:
    """Measure and print; returns what goes into the JSON file."""
    torch.set_num_threads(1)
    rows = []
    for width in WIDTHS:
        for rungs in (1, 4):
            contestants = {"fastgen": Contestant(width, rungs, ours)}
            try:
                contestants["modelopt"] = Contestant(width, rungs, modelopt)
            except ImportError as error:
                print(f"modelopt cannot be imported ({error}): its rows are left out")
            steps = {name: contestant.step for name, contestant in contestants.items()}
            seconds = take_turns(steps, rounds, warm_up=3)
            median = medians(seconds)
            row: dict[str, Any] = {"width": width, "student_steps": rungs, "seconds": median}
            if "modelopt" in median:
                pairs = zip(seconds["fastgen"], seconds["modelopt"], strict=True)
                row["ratio"] = statistics.median(a / b for a, b in pairs)
            rows.append(row)
            shown = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in median.items())
            ratio = f", ratio {row['ratio']:.3f} (bar {BAR})" if "ratio" in row else ""
            print(f"width {width}, {rungs} rungs: {shown}{ratio}", flush=True)
    return {"torch": torch.__version__, "batch": BATCH, "rounds": rounds, "rows": rows}
