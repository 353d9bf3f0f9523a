"""Writes small posterior estimators of sbi, and what sbi's own code answers with them; what it
wrote lies in tests/data/posterior.

    python tools/make_posterior.py {fmpe,ve,vp,subvp} FOLDER

`fmpe` is a flow, the others are scores (NPSE) on the path of that name. It needs sbi 0.27, in an
environment of its own; tests/data/posterior/README.md names the versions.
"""

# The writer is not in the environment of this package.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SIMULATIONS = 4000
OBSERVATIONS = 8
SAMPLES = 32
EPOCHS = 150
# Where the prior is uniform: parameters of other sizes and places.
LOW = (-2.0, 5.0)
HIGH = (2.0, 15.0)
# The sizes of the estimators' networks.
SIZES = {"hidden_features": 32, "num_layers": 3, "t_embedding_dim": 16}
KINDS = ("fmpe", "ve", "vp", "subvp")


def simulate(theta: Tensor) -> Tensor:
    """Observations (B, 3) of parameters (B, 2). The first one's sign is seen in none of them: its
    posterior has two modes."""
    a, b = theta.unbind(-1)
    seen = torch.stack([10.0 * a**2, b - 10.0 + a.abs(), 0.1 * (b - 10.0) * a**2], -1)
    return 50.0 + seen + torch.randn(seen.shape)


def trainer_of(kind: str, prior):
    """The trainer of an estimator, and what says how its posterior is sampled."""
    from sbi.inference import FMPE, NPSE
    from sbi.neural_nets import posterior_flow_nn, posterior_score_nn

    if kind == "fmpe":
        network = posterior_flow_nn(**SIZES)
        return FMPE(prior, vf_estimator=network, show_progress_bars=False), {}
    network = posterior_score_nn(sde_type=kind, compose_standardization=True, **SIZES)
    trainer = NPSE(prior, vf_estimator=network, show_progress_bars=False)
    return trainer, {"sample_with": "ode"}


def main(kind: str, folder: Path) -> None:
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    prior = BoxUniform(torch.tensor(LOW), torch.tensor(HIGH))
    theta = prior.sample((SIMULATIONS,))
    x = simulate(theta)
    trainer, sampling = trainer_of(kind, prior)
    trainer.append_simulations(theta, x)
    estimator = trainer.train(learning_rate=2e-3, max_num_epochs=EPOCHS)
    posterior = trainer.build_posterior(estimator, **sampling)

    observed = simulate(prior.sample((OBSERVATIONS,)))
    drawn = [samples_of(posterior, row, seed) for seed, row in enumerate(observed)]
    noise, samples = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    conditions = observed.repeat_interleave(SAMPLES, 0)
    times = torch.rand(len(noise))
    answers = {"x": conditions, "noise": noise, "samples": samples, "times": times}
    if kind == "fmpe":
        answers["theta_t"] = torch.lerp(samples, noise, times[:, None])
        field = estimator.ode_fn(answers["theta_t"], conditions, times)
    else:
        times.clamp_(min=estimator.t_min)
        eps = torch.randn(samples.shape)
        answers["theta_t"] = estimator.mean_fn(samples, times) + estimator.std_fn(times) * eps
        field = estimator.score(answers["theta_t"], conditions, times)
    answers["field"] = field.detach()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(estimator.state_dict(), str(folder / "weights.safetensors"))
    save_file(answers, str(folder / "answers.safetensors"))
    if kind == "fmpe":
        rows = slice(0, 512)
        simulations = {"X": theta[rows].contiguous(), "Z": x[rows].contiguous()}
        save_file(simulations, str(folder / "simulations.safetensors"))


def samples_of(posterior, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Where the posterior's own sampler starts and what it makes of it, (SAMPLES, 2) each, in the
    units of the estimator. It rejects nothing, so that each row of noise has its sample."""
    torch.manual_seed(seed)
    samples = posterior.sample(
        (SAMPLES,), x=x, reject_outside_prior=False, show_progress_bars=False
    )
    flow = posterior.potential_fn.neural_ode(posterior.potential_fn.x_o)
    torch.manual_seed(seed)
    noise = flow.base.sample((SAMPLES,)).view(SAMPLES, -1)
    again = flow.transform.inv(noise.view(SAMPLES, 1, -1)).view_as(samples)
    estimator = posterior.vector_field_estimator
    torch.testing.assert_close(estimator.from_z(again), samples, rtol=0.0, atol=0.0)
    return noise, again


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    main(given.kind, given.folder)
