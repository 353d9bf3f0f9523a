"""Whether a converted teacher distils as well as a native one: four networks of one mixture, and
their students.

    python tools/bench.py teachers [--seeds 0 1 2] [--out runs/bench-teachers]

Each network is trained on its own path, prediction and clock. Its students, by KD and by DMD after
it, take one call. The data are six Gaussians in the plane, of unequal weights and each wider in one
direction. So everything about a student is known: the weights of its modes (total variation
distance), their covariances (mean relative error, Frobenius norm) and its energy distance to the
data.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DistillConfig, EMAConfig
from fastgen.data.mixtures import GaussianMixture
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.ema import ExponentialMovingAverage
from fastgen.jobs.checks import fit_to_teacher
from fastgen.methods.kd import kd_loss, teacher_pairs
from fastgen.metrics import energy_distance
from fastgen.models import TimeEmbedding
from fastgen.samplers import sample_student, sample_teacher
from fastgen.teachers import as_rectified_flow
from fastgen.teachers.paths import parse_clock

DECLARATIONS: dict[str, dict[str, Any]] = {
    "native flow": {"path": "linear", "prediction": "flow"},
    "cosine eps": {"path": "cosine", "prediction": "eps"},
    "VP score": {"path": "vp", "prediction": "score"},
    "reversed velocity x1000": {
        "path": "linear",
        "prediction": "velocity",
        "data_at": 1,
        "time_scale": 1000.0,
    },
}
BATCH = 256
SAMPLES = 8000
PAIRS = 6000
TEACHER_STEPS = 2500
KD_STEPS = 400
WARMUP = 100
DMD_STEPS = 150


def mixture() -> GaussianMixture:
    """Six modes on a circle, weights 1, 2, 3, 1, 2, 3, standard deviations .15 along and .3 across
    the radius."""
    angle = torch.arange(6, dtype=torch.float64) * math.pi / 3
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(6, 2, 2)
    covariances = turn @ torch.diag(torch.tensor([0.15**2, 0.3**2], dtype=torch.float64)) @ turn.mT
    weights = torch.tensor([1.0, 2.0, 3.0] * 2)
    return GaussianMixture(1.2 * turn[..., 0], covariances, weights=weights)


class Denoiser(nn.Module):
    """A residual MLP for points of the plane, with a clock over [0, `time_scale`].

    Its answer is divided by `sigma(t)` if that is given: a score has the size 1 / sigma, which a
    network had better not learn.
    """

    def __init__(
        self,
        width: int = 64,
        time_scale: float = 1.0,
        sigma: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.sigma = sigma
        self.time = TimeEmbedding(32, time_scale=1000.0 / time_scale)
        self.embed = nn.Linear(2 + 32, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        h = self.embed(torch.cat([x, self.time(t)], 1))
        for block in self.blocks:
            h = h + block(nn.functional.silu(h))
        answer = self.head(nn.functional.silu(h))
        return answer if self.sigma is None else answer / self.sigma(t)[:, None].to(answer)


def train_network(
    declaration: dict[str, Any], data: Tensor, seed: int, *, steps: int = TEACHER_STEPS
) -> nn.Module:
    """A network trained as declared for so many updates, by the squared error of its own
    prediction; of a score, times sigma."""
    clock = parse_clock(declaration["path"], declaration.get("data_at", 0))
    scale = declaration.get("time_scale", 1.0)
    prediction = declaration["prediction"]
    score_sigma = (lambda s: clock.coefficients(s.double())[1]) if prediction == "score" else None
    network = Denoiser(time_scale=scale, sigma=score_sigma)
    generator = generator_for(seed, "teacher")
    t_max = as_rectified_flow(network, **declaration).t_max

    def loss(step: int) -> Tensor:
        x0 = data[torch.randint(len(data), (BATCH,), generator=generator)]
        eps = torch.randn(x0.shape, generator=generator)
        # Uniform in RF time, so that all networks are equally good where they are used, whatever
        # their clock.
        t = 0.999 * torch.rand(BATCH, generator=generator, dtype=torch.float64)
        t = t.clamp(max=t_max)
        s = clock.time_of_ratio(t / (1.0 - t))
        alpha, sigma = (c.float()[:, None] for c in clock.coefficients(s))
        pred = network(alpha * x0 + sigma * eps, (s * scale).float())
        match prediction:
            case "flow":
                error = pred - (eps - x0)
            case "velocity":
                d_alpha, d_sigma = (c.float()[:, None] for c in clock.derivatives(s))
                error = pred - (d_alpha * x0 + d_sigma * eps)
            case "score":
                error = sigma * pred + eps
            case _:  # eps
                error = pred - eps
        return error.square().mean()

    return minimise(network, loss, steps, lr=3e-3, decay=0.995)


def minimise(
    network: nn.Module, loss: Callable[[int], Tensor], steps: int, *, lr: float, decay: float
) -> nn.Module:
    """Adam with a warm-up and a cosine; the network with its averaged weights, in eval mode."""
    step_of = stepper(network, lr, (0.9, 0.99))
    ema = ExponentialMovingAverage(network, EMAConfig(decay=decay))
    for step in range(steps):
        step_of(loss(step), step / steps)
        ema.update(network, iteration=step + 1)
    ema.copy_to(network)
    return network.eval()


def stepper(
    network: nn.Module, lr: float, betas: tuple[float, float]
) -> Callable[[Tensor, float], None]:
    """A function that makes one update, of a loss and the progress of the training in [0, 1)."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, betas=betas, fused=True)

    def step(loss: Tensor, progress: float) -> None:
        warm_up = min(1.0, 50 * progress + 0.02)
        decay = 0.5 * (1.0 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = lr * warm_up * decay
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def distil(teacher: nn.Module, t_list: list[float], config: Any, seed: int) -> dict[str, nn.Module]:
    """The students by KD and by DMD after KD."""
    generator = generator_for(seed, "student")

    def noise(n: int) -> Tensor:
        return torch.randn(n, 2, generator=generator)

    pairs = teacher_pairs(teacher, noise(PAIRS), None, t_list, calls=16)
    student = copy.deepcopy(teacher).requires_grad_(True)

    def regression(step: int) -> Tensor:
        rows = pairs[torch.randint(PAIRS, (BATCH,), generator=generator)]
        rungs = torch.zeros(BATCH, dtype=torch.long)
        return kd_loss(student, rows, t_list, None, rungs, sample_type=config.student_sample_type)

    by_kd = copy.deepcopy(minimise(student, regression, KD_STEPS, lr=2e-3, decay=0.99))
    fake_score = create_fake_score(teacher)
    pipeline = DMDPipeline(student, teacher, fake_score, config)
    update_fake = stepper(fake_score, 5e-4, (0.0, 0.99))

    def fake_score_updates(count: int, progress: float) -> None:
        for _ in range(count):
            losses = pipeline.compute_fake_score_loss(None, noise(BATCH), generator=generator)
            update_fake(losses["total"], progress)

    fake_score_updates(WARMUP, 0.1)

    def matching(step: int) -> Tensor:
        fake_score_updates(config.fake_steps_per_student_step if step else 0, step / DMD_STEPS)
        return pipeline.compute_student_loss(None, noise(BATCH), generator=generator)["total"]

    minimise(student, matching, DMD_STEPS, lr=1e-4, decay=0.99)
    return {"kd": by_kd, "dmd": student}


def scores(x: Tensor, law: GaussianMixture, reference: Tensor) -> dict[str, float]:
    """Weights, covariances and energy distance of samples against the truth."""
    x = x.double()
    mode = law.responsibilities(x).argmax(1)
    weights = torch.bincount(mode, minlength=6) / len(x)
    truth = law.component_covariances()
    found = torch.zeros_like(truth)
    for k in range(6):
        members = x[mode == k]
        if len(members) > 2:
            found[k] = torch.cov(members.T)
    errors = (found - truth).norm(dim=(1, 2)) / truth.norm(dim=(1, 2))
    return {
        "weights": 0.5 * float((weights - law.weights).abs().sum()),
        "covariances": float(errors.mean()),
        "energy_distance": float(energy_distance(x[:2000], reference, unbiased=True)),
    }


def run_teachers(seeds: list[int], out: Path) -> None:
    """The table, on the terminal and in `out`/bench.json."""
    torch.set_num_threads(1)
    law = mixture()
    started = time.perf_counter()
    data = law.sample(100_000, generator=generator_for(0, "data"))
    reference = law.sample(2000, generator=generator_for(0, "reference")).double()
    fresh = [law.sample(SAMPLES, generator=generator_for(seed, "fresh")) for seed in seeds]
    rows = {"data, fresh": [scores(x, law, reference) for x in fresh]}
    for name, declaration in DECLARATIONS.items():
        torch.manual_seed(0)
        teacher = as_rectified_flow(train_network(declaration, data, 0), **declaration)
        cfg, _ = fit_to_teacher(DistillConfig.model_validate({"dmd": {"vsd_norm": "rms"}}), teacher)
        t_list = list(cfg.student.t_list)
        for seed in seeds:
            start = torch.randn(SAMPLES, 2, generator=generator_for(seed, "start"))
            samples = {"teacher, 100 calls": sample_teacher(teacher, start, 100)}
            for method, student in distil(teacher, t_list, cfg.pipeline, seed).items():
                samples[f"student, {method}, t_1 = {t_list[0]:.4g}"] = sample_student(
                    student, start, t_list
                )
            for who, x in samples.items():
                rows.setdefault(f"{name}: {who}", []).append(scores(x, law, reference))  # pyright: ignore
    medians = {
        who: {key: statistics.median(r[key] for r in each) for key in each[0]}
        for who, each in rows.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    seconds = time.perf_counter() - started
    found = {"rows": rows, "medians": medians, "seconds": seconds}
    (out / "bench.json").write_text(json.dumps(found, indent=1))
    head = f"median of {len(seeds)} seeds"
    print(f"{head:<52}{'weights':>9}{'covariances':>13}{'energy, 1e-3':>14}")
    for who, row in medians.items():
        energy = 1e3 * row["energy_distance"]
        print(f"{who:<52}{row['weights']:>9.4f}{row['covariances']:>13.3f}{energy:>14.2f}")
    print(f"{seconds:.0f} s")
