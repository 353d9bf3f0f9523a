"""Writes a small flow policy of LeRobot, and what lerobot's own code answers with it; what it wrote
lies in tests/data/policies/flow.

    python tools/make_flow_policy.py FOLDER

It is a MultiTaskDiTPolicy that sees states and an instruction, trained for seconds on the episodes
of tests/data/sets. Its text encoder is a CLIP of a few numbers that was never trained, since that
of a real policy is downloaded. It needs lerobot 0.6 with transformers and diffusers, in an
environment of its own; tests/data/policies/README.md names the versions.
"""

# The writer is not in the environment of this package.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from make_datasets import episodes

OBSERVATIONS = 2
HORIZON = 8
UPDATES = 60
CALLS = 10
# The instruction, as a tokenizer would have it.
TOKENS = (3, 5, 8, 1)
STATE = "observation.state"


def windows() -> dict[str, Tensor]:
    """Windows as lerobot cuts them, each channel from its least to its largest as -1 to 1."""
    rows: dict[str, list[np.ndarray]] = {STATE: [], "action": []}
    for episode in episodes():
        seen = np.concatenate([episode["state"], episode["place"]], 1)
        for start in range(len(seen) - HORIZON + 1):
            rows[STATE].append(seen[start : start + OBSERVATIONS])
            rows["action"].append(episode["action"][start : start + HORIZON])
    found = {}
    for name, values in rows.items():
        value = torch.from_numpy(np.stack(values))
        flat = value.flatten(0, 1)
        low, high = flat.amin(0), flat.amax(0)
        found[name] = 2 * (value - low) / (high - low) - 1
    return found


def text_encoder(folder: str) -> None:
    """A CLIP of texts, with random numbers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=len(TOKENS),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    CLIPTextModel(config).save_pretrained(folder)


def policy_of(data: dict[str, Tensor], encoder: str):
    """A policy with random numbers."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

    config = MultiTaskDiTConfig(
        device="cpu",
        push_to_hub=False,
        objective="flow_matching",
        n_obs_steps=OBSERVATIONS,
        horizon=HORIZON,
        n_action_steps=HORIZON // 2,
        hidden_dim=16,
        num_layers=2,
        num_heads=2,
        timestep_embed_dim=16,
        num_integration_steps=CALLS,
        image_crop_shape=None,
        text_encoder_name=encoder,
        input_features={STATE: PolicyFeature(FeatureType.STATE, (data[STATE].shape[-1],))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
    )
    return MultiTaskDiTPolicy(config)


def batch_of(data: dict[str, Tensor], rows: Tensor) -> dict[str, Any]:
    """These windows, each with the instruction."""
    tokens = torch.tensor(TOKENS).expand(len(rows), -1)
    return {
        **{name: value[rows] for name, value in data.items()},
        "observation.language.tokens": tokens,
        "observation.language.attention_mask": torch.ones_like(tokens),
    }


@torch.no_grad()
def answers_of(policy, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What the policy makes of observations, its velocity, and its samples from given noise."""
    encoded = policy.observation_encoder.encode(batch)
    action = batch["action"]
    noise = torch.randn(action.shape)
    times = torch.tensor([0.0, 0.2, 0.6, 0.9])
    x_s = torch.lerp(noise, action, times[:, None, None])
    answers = {
        "action": action,
        "Z": encoded.unflatten(1, (OBSERVATIONS, -1)),
        "noise": noise,
        "times": times,
        "x_s": x_s,
        "velocity": policy.noise_predictor(x_s, times, conditioning_vec=encoded),
    }
    for method in ("euler", "rk4"):
        policy.config.integration_method = method
        # It draws its noise itself.
        torch.manual_seed(1)
        answers[f"noise_{method}"] = torch.randn(action.shape)
        torch.manual_seed(1)
        answers[f"samples_{method}"] = policy.objective.conditional_sample(
            policy.noise_predictor, len(action), encoded
        )
    return answers


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    # So that the policy's config names its text encoder without the folders around it.
    os.chdir(folder)
    torch.manual_seed(0)
    data = windows()
    text_encoder("clip-text")
    policy = policy_of(data, "clip-text")
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(UPDATES):
        loss, _ = policy.forward(batch_of(data, torch.randint(len(data["action"]), (32,))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    policy.save_pretrained("pretrained_model")
    answers = answers_of(policy, batch_of(data, torch.arange(4)))
    answers |= {"train.action": data["action"], "train.Z": encoded_all(policy, data)}
    save_file({k: v.contiguous().clone() for k, v in answers.items()}, "answers.safetensors")


@torch.no_grad()
def encoded_all(policy, data: dict[str, Tensor]) -> Tensor:
    """Z of all windows."""
    batch = batch_of(data, torch.arange(len(data["action"])))
    return policy.observation_encoder.encode(batch).unflatten(1, (OBSERVATIONS, -1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
