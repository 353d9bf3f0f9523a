"""Writes small policies of LeRobot, and what lerobot's own code answers with them; what it wrote
lies in tests/data/policies.

    python tools/make_policy.py {drive,push} FOLDER

`drive` is trained for seconds on the episodes of tests/data/sets, `push` for some minutes on those
of tools/push.py. It needs lerobot 0.4 with diffusers, in an environment of its own;
tests/data/policies/README.md names the versions.
"""

# The writer is not in the environment of this package.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import push
from make_datasets import episodes as drives

OBSERVATIONS = 2
# The features of an episode's arrays.
FEATURES = {
    "state": "observation.state",
    "place": "observation.environment_state",
    "action": "action",
}
Episodes = list[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A policy: its windows, its network, its table of noise, its training."""

    horizon: int
    down_dims: tuple[int, ...]
    num_groups: int
    time_dim: int
    table_rows: int
    calls: int
    updates: int
    batch: int
    lr: float
    padded: bool


KINDS = {
    "drive": Kind(8, (8, 16), 4, 16, 50, 10, 60, 32, 3e-3, padded=False),
    "push": Kind(16, (32, 48), 8, 32, 100, 10, 6000, 128, 1e-3, padded=True),
}


def windows(found: Episodes, kind: Kind) -> dict[str, Tensor]:
    """Windows as lerobot cuts them: actions begin at the first of the observations. Where they are
    padded, rows beyond an episode repeat its ends."""
    rows: dict[str, list[Tensor]] = {name: [] for name in FEATURES}
    for episode in found:
        length = len(episode["action"])
        starts = range(length - kind.horizon + 1)
        if kind.padded:
            starts = range(1 - OBSERVATIONS, length - OBSERVATIONS + 1)
        for start in starts:
            for name, values in rows.items():
                size = kind.horizon if name == "action" else OBSERVATIONS
                places = np.clip(np.arange(start, start + size), 0, length - 1)
                values.append(torch.from_numpy(episode[name][places]))
    return {FEATURES[name]: torch.stack(values) for name, values in rows.items()}


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


def policy_config(kind: Kind, data: dict[str, Tensor]):
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    types = dict(zip(FEATURES.values(), ("STATE", "ENV", "ACTION"), strict=True))
    features = {
        name: PolicyFeature(FeatureType[types[name]], (value.shape[-1],))
        for name, value in data.items()
    }
    output = {"action": features.pop("action")}
    return DiffusionConfig(
        device="cpu",
        push_to_hub=False,
        n_obs_steps=OBSERVATIONS,
        horizon=kind.horizon,
        n_action_steps=kind.horizon // 2,
        down_dims=kind.down_dims,
        n_groups=kind.num_groups,
        diffusion_step_embed_dim=kind.time_dim,
        num_train_timesteps=kind.table_rows,
        noise_scheduler_type="DDIM",
        num_inference_steps=kind.calls,
        input_features=features,
        output_features=output,
    )


def trained(kind: Kind, config, normalised: dict[str, Any]):
    """A policy after its updates, whose learning rate falls to zero over the last half."""
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    policy = DiffusionPolicy(config)
    optimizer = torch.optim.Adam(policy.parameters(), lr=kind.lr)
    if kind.padded:
        falling = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: min(1.0, 2.0 * (1.0 - done / kind.updates))
        )
    keys = [*FEATURES.values()]
    for _ in range(kind.updates):
        chosen = torch.randint(len(normalised["action"]), (kind.batch,))
        batch = {key: normalised[key][chosen] for key in keys}
        batch["action_is_pad"] = torch.zeros(kind.batch, kind.horizon, dtype=torch.bool)
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if kind.padded:
            falling.step()
    return policy.eval()


def main(name: str, folder: Path) -> None:
    from lerobot.policies.diffusion.processor_diffusion import (
        make_diffusion_pre_post_processors,
    )

    torch.manual_seed(0)
    kind = KINDS[name]
    found = drives() if name == "drive" else push.episodes(push.EPISODES)
    data = windows(found, kind)
    config = policy_config(kind, data)
    before, after = make_diffusion_pre_post_processors(config, dataset_stats=statistics(data))
    policy = trained(kind, config, before(dict(data)))

    saved = folder / "pretrained_model"
    policy.save_pretrained(saved)
    before.save_pretrained(saved)
    after.save_pretrained(saved)
    if name == "drive":
        asked = {key: value[:4] for key, value in data.items()}
        answers = answers_of(policy, {key: before(dict(data))[key][:4] for key in data})
    else:
        asked = windows(push.episodes(20, seed=1), kind)
        chosen = torch.randperm(len(asked["action"]))[:64]
        asked = {key: value[chosen] for key, value in asked.items()}
        answers = samples_of(policy, before(dict(asked)), after)
    answers |= {f"raw.{key}": value for key, value in asked.items()}
    answers = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in answers.items()
    }
    save_file(answers, str(folder / "answers.safetensors"))


@torch.no_grad()
def samples_of(policy, batch: dict[str, Any], after) -> dict[str, Tensor]:
    """Samples of the policy's own sampler from given noise, four a condition, in ten calls and in a
    hundred: as the network makes them, and after the policy's own post-processing."""
    model = policy.diffusion
    given = model._prepare_global_conditioning({key: batch[key] for key in FEATURES.values()})
    given = given.repeat_interleave(4, 0)
    noise = torch.randn(len(given), policy.config.horizon, 2)
    found = {"noise": noise}
    for calls in (10, 100):
        model.num_inference_steps = calls
        samples = model.conditional_sample(len(given), global_cond=given, noise=noise)
        found[f"samples_{calls}"] = samples
        found[f"actions_{calls}"] = after(samples)
    return found


@torch.no_grad()
def answers_of(policy, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What the policy answers to normalised windows: its noise at some rows of its table, and its
    samples from given noise."""
    model = policy.diffusion
    given = model._prepare_global_conditioning(batch)
    noise = torch.randn(4, policy.config.horizon, 2)
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
    scheduler.set_timesteps(model.num_inference_steps)
    x = noise
    for row in scheduler.timesteps:
        eps = model.unet(x, row.expand(len(x)), global_cond=given)
        x = scheduler.step(eps, row, x, use_clipped_model_output=True).prev_sample
    return x


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    main(given.kind, given.folder)
