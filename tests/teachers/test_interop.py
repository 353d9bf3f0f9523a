"""Networks of other libraries: randomly initialised, built from a config, nothing downloaded."""

from __future__ import annotations

import copy
import json
import math
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastgen.config import DistillConfig
from fastgen.config.files import validate
from fastgen.distillation import distill
from fastgen.export.folders import load_student
from fastgen.teachers import KeywordNetwork, as_rectified_flow
from fastgen.teachers.clocks import beta_table
from support.packages import installed
from support.toy import toy_config

pytestmark = pytest.mark.slow

UNET = {
    **{
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_class_embeds": 3,
        "norm_num_groups": 4,
    },
    **{"layers_per_block": 1, "block_out_channels": [8, 16]},
    **{
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    },
    "attention_head_dim": 4,
}
LATENTS = torch.randn(60, 4, 8, 8, generator=torch.Generator().manual_seed(0))
STABLE = {"beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    """The library, imported here because that takes seconds. It has no release for Python 3.10 that
    goes with the other pins."""
    return installed("diffusers", since=(3, 11))


def test_a_unet_on_latents_is_distilled_by_a_handful_of_keys(diffusers, tmp_path):
    """The keys are those of the YAML in the README; the loaded student knows neither path nor
    prediction by itself."""
    np.savez(tmp_path / "latents.npz", X=LATENTS.numpy(), Z=(torch.arange(60) % 3).numpy())
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**UNET)
    save_file(unet.state_dict(), tmp_path / "unet.safetensors")
    base = toy_config(tmp_path / "run", kd_steps=3, kd_pairs=16, steps=2, batch_size=4).model_dump(
        exclude_unset=True
    )
    cfg = validate(
        DistillConfig,
        {
            **base,
            "data": {"name": "file", "path": str(tmp_path / "latents.npz")},
            "teacher": {
                **{"calls": [1], "ab2_calls": [2]},
                **{
                    "factory": "diffusers:UNet2DModel",
                    "arguments": UNET,
                    "weights": str(tmp_path / "unet.safetensors"),
                },
                **{"keywords": {"x": "sample", "cond": "class_labels"}, "prediction": "eps"},
                "path": {"name": "betas", "schedule": "scaled_linear", **STABLE},
            },
        },
    )
    run = distill(cfg)
    report = json.loads((run / "report" / "report.json").read_text())
    assert all(math.isfinite(value) for value in report["student"]["1"].values())

    student = load_student(run / "student", network=diffusers.UNet2DModel(**UNET))
    labels = torch.tensor([0, 2])
    x = student.sample(labels, num_samples=2, generator=torch.Generator().manual_seed(0))
    assert x.shape == (2, 2, 4, 8, 8) and bool(torch.isfinite(x).all())
    inside = student.config["parameterization"]
    assert inside["keywords"]["x"] == "sample" and inside["rectified_flow"]["prediction"] == "eps"


def test_betas_are_those_of_the_schedulers_of_diffusers(diffusers):
    names = {
        "linear": "linear",
        "scaled_linear": "scaled_linear",
        "squared_cosine": "squaredcos_cap_v2",
    }
    for ours, theirs in names.items():
        ends = STABLE if ours == "scaled_linear" else {}
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs, **ends)
        # They are float32, accumulated in float32.
        torch.testing.assert_close(
            beta_table(ours, **ends).float(), scheduler.betas, rtol=2e-5, atol=2e-7
        )


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_x0_is_the_one_that_their_scheduler_reads_out(diffusers, prediction):
    """At a row of the table, where both have the same noise ratio."""
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        prediction_type=prediction,
        clip_sample=False,
        beta_schedule="scaled_linear",
        **STABLE,
    )
    row = 400
    answer = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    x_s = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    scheduler.set_timesteps(1000)
    expected = scheduler.step(answer, row, x_s).pred_original_sample

    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, cond: None) -> Tensor:
        seen.append(t)
        return answer

    ours = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}[prediction]
    teacher = as_rectified_flow(network, path=scheduler.betas, prediction=ours)
    alpha, sigma = (
        c[0] for c in teacher.clock.coefficients(torch.tensor([float(row)], dtype=torch.float64))
    )
    x_t = x_s.double() / (alpha + sigma)
    t = float(sigma / (alpha + sigma))
    torch.testing.assert_close(teacher.predict_x0(x_t, t).float(), expected, rtol=1e-4, atol=1e-4)
    assert seen[0].tolist() == pytest.approx([row] * 3, abs=1e-3)


def test_a_transformer_is_called_by_its_own_keywords(diffusers):
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
        },
        **{"sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
    ).eval()
    net = KeywordNetwork(transformer, cond="class_labels")
    x = LATENTS[:2]
    t = torch.tensor([3, 400])
    labels = torch.tensor([1, 7])
    expected = transformer(hidden_states=x, timestep=t, class_labels=labels).sample
    torch.testing.assert_close(net(x, t, labels), expected)
    torch.testing.assert_close(net(x, t, {"class_labels": labels}), expected)
    # It looks its rows up, so it is asked at whole ones; copies of it can be trained.
    teacher = as_rectified_flow(net, path=beta_table("linear"), prediction="eps", nearest=True)
    student = copy.deepcopy(teacher)
    student(x, 0.5, labels).square().mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
