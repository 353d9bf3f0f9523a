"""Writes a small posterior estimator of sbi, and what sbi's own code answers with it; what it wrote
lies in tests/data/posterior.

    python tools/make_posterior.py FOLDER

It needs sbi 0.27, in an environment of its own; tests/data/posterior/README.md names the versions.
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
# Where the prior is uniform: parameters of other sizes and places.
LOW = (-2.0, 5.0)
HIGH = (2.0, 15.0)
# The sizes of the estimator's network.
SIZES = {"hidden_features": 32, "num_layers": 3, "t_embedding_dim": 16}


def simulate(theta: Tensor) -> Tensor:
    """Observations (B, 3) of parameters (B, 2). The first one's sign is seen in none of them: its
    posterior has two modes."""
    a, b = theta.unbind(-1)
    seen = torch.stack([10.0 * a**2, b - 10.0 + a.abs(), 0.1 * (b - 10.0) * a**2], -1)
    return 50.0 + seen + torch.randn(seen.shape)


def main(folder: Path) -> None:
    from sbi.inference import FMPE
    from sbi.neural_nets import posterior_flow_nn
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    prior = BoxUniform(torch.tensor(LOW), torch.tensor(HIGH))
    theta = prior.sample((SIMULATIONS,))
    x = simulate(theta)
    trainer = FMPE(prior, vf_estimator=posterior_flow_nn(**SIZES), show_progress_bars=False)
    trainer.append_simulations(theta, x)
    estimator = trainer.train(learning_rate=2e-3, max_num_epochs=150)
    posterior = trainer.build_posterior(estimator)

    observed = simulate(prior.sample((OBSERVATIONS,)))
    drawn = [samples_of(posterior, row, seed) for seed, row in enumerate(observed)]
    noise, samples = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    conditions = observed.repeat_interleave(SAMPLES, 0)
    times = torch.rand(len(noise))
    theta_t = torch.lerp(samples, noise, times[:, None])
    answers = {
        "x": conditions,
        "noise": noise,
        "samples": samples,
        "times": times,
        "theta_t": theta_t,
        "field": estimator.ode_fn(theta_t, conditions, times).detach(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(estimator.state_dict(), str(folder / "weights.safetensors"))
    save_file(answers, str(folder / "answers.safetensors"))
    rows = slice(0, 512)
    simulations = {"X": theta[rows].contiguous(), "Z": x[rows].contiguous()}
    save_file(simulations, str(folder / "simulations.safetensors"))


def samples_of(posterior, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Noise and what the posterior's own sampler makes of it, (SAMPLES, 2) each. It rejects
    nothing, so that each row of noise has its sample."""
    torch.manual_seed(seed)
    samples = posterior.sample(
        (SAMPLES,), x=x, reject_outside_prior=False, show_progress_bars=False
    )
    flow = posterior.potential_fn.neural_ode(posterior.potential_fn.x_o)
    torch.manual_seed(seed)
    noise = flow.base.sample((SAMPLES,)).view(SAMPLES, -1)
    again = flow.transform.inv(noise.view(SAMPLES, 1, -1)).view_as(samples)
    torch.testing.assert_close(again, samples, rtol=0.0, atol=0.0)
    return noise, samples


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
