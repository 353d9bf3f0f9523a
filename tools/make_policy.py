"""Writes a small policy of LeRobot, and what lerobot's own code answers with it; what it wrote lies
in tests/data/policies.

    python tools/make_policy.py FOLDER

It needs lerobot 0.4 with diffusers, in an environment of its own; tests/data/policies/README.md
names the versions.
"""

# The writer is not in the environment of this package.
# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from make_datasets import episodes

OBSERVATIONS = 2
HORIZON = 8
UPDATES = 60
CALLS = 10


def windows() -> dict[str, Tensor]:
    """Windows as lerobot cuts them: actions begin at the first of the observations."""
    rows: dict[str, list[Tensor]] = {"state": [], "place": [], "action": []}
    for episode in episodes():
        length = len(episode["action"])
        for start in range(length - HORIZON + 1):
            seen = slice(start, start + OBSERVATIONS)
            rows["state"].append(torch.from_numpy(episode["state"][seen]))
            rows["place"].append(torch.from_numpy(episode["place"][seen]))
            rows["action"].append(torch.from_numpy(episode["action"][start : start + HORIZON]))
    return {
        "observation.state": torch.stack(rows["state"]),
        "observation.environment_state": torch.stack(rows["place"]),
        "action": torch.stack(rows["action"]),
    }


def statistics(data: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What lerobot keeps of a data set, by feature."""
    found = {}
    for name, value in data.items():
        flat = value.flatten(0, 1)
        found[name] = {
            "min": flat.amin(0),
            "max": flat.amax(0),
            "mean": flat.mean(0),
            "std": flat.std(0),
        }
    return found


def policy_config():
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    return DiffusionConfig(
        device="cpu",
        push_to_hub=False,
        n_obs_steps=OBSERVATIONS,
        horizon=HORIZON,
        n_action_steps=4,
        down_dims=(8, 16),
        n_groups=4,
        diffusion_step_embed_dim=16,
        num_train_timesteps=50,
        noise_scheduler_type="DDIM",
        num_inference_steps=CALLS,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
    )


def main(folder: Path) -> None:
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.diffusion.processor_diffusion import (
        make_diffusion_pre_post_processors,
    )

    torch.manual_seed(0)
    data = windows()
    config = policy_config()
    policy = DiffusionPolicy(config)
    before, after = make_diffusion_pre_post_processors(config, dataset_stats=statistics(data))
    normalised = before(dict(data))
    keys = [*data]
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(UPDATES):
        chosen = torch.randint(len(data["action"]), (32,))
        batch = {key: normalised[key][chosen] for key in keys}
        batch["action_is_pad"] = torch.zeros(32, HORIZON, dtype=torch.bool)
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()

    saved = folder / "pretrained_model"
    policy.save_pretrained(saved)
    before.save_pretrained(saved)
    after.save_pretrained(saved)
    answers = answers_of(policy, {key: normalised[key][:4] for key in keys})
    answers |= {f"raw.{key}": data[key][:4] for key in keys}
    answers = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in answers.items()
    }
    save_file(answers, str(folder / "answers.safetensors"))


@torch.no_grad()
def answers_of(policy, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the policy answers to normalised windows: its noise at some rows of its table, and its
    samples from given noise."""
    model = policy.diffusion
    given = model._prepare_global_conditioning(batch)
    noise = torch.randn(4, HORIZON, 2)
    rows = torch.tensor([0, 10, 30, 49])
    x_s = model.noise_scheduler.add_noise(batch["action"], noise, rows)
    return {
        **{name: value.contiguous() for name, value in batch.items()},
        "noise": noise,
        "rows": rows,
        "x_s": x_s,
        "eps": model.unet(x_s, rows, global_cond=given),
        "samples": model.conditional_sample(4, global_cond=given, noise=noise),
        "clipped_samples": clipped_samples(model, given, noise),
    }


def clipped_samples(model, given: Tensor, noise: Tensor) -> Tensor:
    """As `conditional_sample`, with eps found anew where x0 was clipped."""
    scheduler = model.noise_scheduler
    scheduler.set_timesteps(CALLS)
    x = noise
    for row in scheduler.timesteps:
        eps = model.unet(x, row.expand(len(x)), global_cond=given)
        x = scheduler.step(eps, row, x, use_clipped_model_output=True).prev_sample
    return x


if __name__ == "__main__":
    main(Path(sys.argv[1]))
