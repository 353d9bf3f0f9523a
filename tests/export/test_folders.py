"""A student folder gives back the sampler that went in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

import fastgen
from fastgen.export import load_network, load_student, save_network
from fastgen.models.conv_unet import TrajectoryUnet
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.normalizer import Normalizer
from fastgen.samplers import sample_student
from support.folders import T_LIST, X_NORMALIZER, Z_NORMALIZER, conditions, export_, seeded
from support.networks import GROUPS, dense, equivariant
from support.rounding import MULTIPLE, sway


@pytest.mark.kernels
@pytest.mark.parametrize("group", sorted(GROUPS))
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_folded_student_samples_as_the_equivariant_network(tmp_path, group, steps):
    network = equivariant(group, p_drop_emb=0.1, p_drop_attn=0.1)
    student = load_student(export_(tmp_path / "s", network, sample_type="ode", steps=[1, 2, 4]))
    rungs = T_LIST[:: 4 // steps]

    def sampled(noise: Tensor, cond: Tensor) -> Tensor:
        z = Z_NORMALIZER.normalize(cond)
        y = sample_student(network, noise.reshape(3, 3, 4), rungs, z, sample_type="ode")
        return X_NORMALIZER.denormalize(y.reshape(3, 6, 2))

    noise = torch.randn(3, 6, 2, generator=seeded())
    reference = sampled(noise, conditions())
    x = student.sample(conditions(), steps=steps, noise=noise)
    allowed = MULTIPLE * sway(sampled, network, noise, conditions())
    assert (x - reference).norm() <= allowed * reference.norm()
    assert student.config["group"] == group and type(student.network) is CondTransformerRegressor
    assert not any("escnn" in type(module).__module__ for module in student.network.modules())


def test_folding_is_exact_in_float64(tmp_path):
    network = equivariant().double()
    student = load_student(export_(tmp_path / "s", network))
    x, z = torch.randn(3, 3, 4, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    assert student.dtype == torch.float64
    assert torch.allclose(student.network(x, 0.3, z), network(x, 0.3, z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_dense_student_comes_back_bit_for_bit(tmp_path, dtype):
    network = dense().to(dtype)
    student = load_student(export_(tmp_path / "s", network))
    assert student.dtype == dtype and student.config["group"] is None
    for name, value in network.state_dict().items():
        assert torch.equal(student.network.state_dict()[name], value)
    assert student.x_normalizer.state() == X_NORMALIZER.state()
    assert student.t_list == tuple(T_LIST) and student.steps == (1, 2, 4)


def test_each_time_step_is_denormalised_by_itself_after_export_too(tmp_path):
    steps = torch.randn(50, 6, 2, generator=seeded(2), dtype=torch.float64)
    steps = steps * torch.arange(1.0, 7.0)[:, None] + 3
    normalizer = Normalizer.fit_per_step(steps, kind="min_max")
    path = export_(tmp_path / "s", x_normalizer=normalizer, horizon=(6, 2))
    once = load_student(export_(tmp_path / "t", x_normalizer=None, horizon=(6, 2)))
    z = conditions()
    drawn = load_student(path).sample(z, generator=seeded())
    plain = once.sample(z, generator=seeded())
    assert torch.equal(drawn, normalizer.denormalize(plain))
    with pytest.raises(ValueError, match="x_normalizer of 6 steps, got 4"):
        shorter = Normalizer.fit_per_step(steps[:, :4])
        export_(tmp_path / "u", x_normalizer=shorter, horizon=(6, 2))


def test_a_student_loads_in_the_dtype_asked_for(tmp_path):
    path = export_(tmp_path / "s", sample_type="ode")
    student = load_student(path)
    student.network.double()
    fine = load_student(path, dtype=torch.float64).sample(conditions(), generator=seeded())
    assert fine.dtype == torch.float64
    assert torch.equal(fine, student.sample(conditions(), generator=seeded()))


def test_export_is_reproducible_and_leaves_the_network_and_the_generator_alone(tmp_path):
    network = equivariant().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    for name in ("a", "b"):
        export_(tmp_path / name, network)
        load_student(tmp_path / name)
        save_network(tmp_path / f"n{name}", network)
        load_network(tmp_path / f"n{name}")
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training and all(
        torch.equal(before[k], v) for k, v in network.state_dict().items()
    )
    for file in ("student.safetensors", "config.json", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_steps_may_be_fewer_than_the_divisors(tmp_path):
    student = load_student(export_(tmp_path / "s", steps=[4, 2]))
    assert student.steps == (2, 4)
    with pytest.raises(ValueError, match=r"trained, \[2, 4\], got 1"):
        student.sample(conditions(), steps=1)


def test_each_of_several_numbers_of_calls_has_its_own_rungs(tmp_path):
    t_lists = {1: [0.999, 0.0], 3: [0.999, 0.7, 0.2, 0.0]}
    student = load_student(export_(tmp_path / "s", t_lists=t_lists))
    assert student.steps == (1, 3) and student.t_list == tuple(T_LIST)
    assert {k: list(student.rungs(k)) for k in student.steps} == t_lists
    assert student.rungs() == tuple(t_lists[3])
    noise = torch.randn(3, 6, 2, generator=seeded())
    alone = load_student(export_(tmp_path / "t", t_list=t_lists[3]))
    for steps in (None, 3):
        drawn = student.sample(conditions(), noise=noise, steps=steps, generator=seeded())
        assert torch.equal(drawn, alone.sample(conditions(), noise=noise, generator=seeded()))
    fewer = load_student(export_(tmp_path / "u", t_lists=t_lists, steps=[3]))
    assert fewer.steps == (3,)
    with pytest.raises(ValueError, match=r"trained, \[1, 3\], got 2"):
        student.sample(conditions(), steps=2)


def test_networks_of_ones_own(tmp_path):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("count", torch.tensor(3))

        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return self.linear(x) + cond.mean((1, 2))[:, None, None]

    network = Own()
    with pytest.raises(ValueError, match=r"expected horizon \[T_x, d_x\], got horizon=None"):
        export_(tmp_path / "s", network)
    export_(tmp_path / "s", network, horizon=(6, 2), cond_horizon=(2, 2))
    with pytest.raises(ValueError, match="got the class 'Own'; build one and pass network="):
        load_student(tmp_path / "s")
    x = load_student(tmp_path / "s", network=Own()).sample(conditions(), generator=seeded())
    rungs_noise = seeded()
    noise = torch.randn(3, 6, 2, generator=rungs_noise).reshape(3, 3, 4)
    y = sample_student(
        network,
        noise,
        T_LIST,
        Z_NORMALIZER.normalize(conditions()),
        sample_type="sde",
        generator=rungs_noise,
    )
    assert torch.equal(x, X_NORMALIZER.denormalize(y.reshape(3, 6, 2)))
    with pytest.raises(
        ValueError, match="missing count, linear.bias, linear.weight|with missing .*; unexpected"
    ):
        load_student(tmp_path / "s", network=nn.Linear(2, 2))
    # A condition that isn't one Tensor needs no horizon, and its normalizer still says what d_z is.
    export_(tmp_path / "s", network, horizon=(6, 2))
    with pytest.raises(ValueError, match=r"expected x of shape \(..., 2\), got \(3, 2, 3\)"):
        load_student(tmp_path / "s", network=Own()).sample(torch.zeros(3, 2, 3))


@pytest.mark.parametrize("make", [equivariant, dense])
def test_teachers_come_back_as_they_were(tmp_path, make):
    network = make()
    save_network(
        tmp_path / "t", network, description={"seed": 3, "scores": {"success": float("nan")}}
    )
    back, description = load_network(tmp_path / "t")
    assert type(back) is type(network) and back.config == network.config
    assert description == {"seed": 3, "scores": {"success": None}}
    x, z = torch.randn(2, 3, 4), torch.randn(2, 2, 2)
    assert torch.equal(back(x, 0.4, z), network(x, 0.4, z))
    assert all(p.requires_grad for p in back.parameters())
    back(x, 0.4, z).sum().backward()


def test_a_network_is_replaced_together_with_its_scores(tmp_path):
    save_network(tmp_path / "t", dense())
    (tmp_path / "t" / "scores.json").write_text("{}")
    save_network(tmp_path / "t", dense())
    assert sorted(os.listdir(tmp_path / "t")) == ["config.json", "model.safetensors"]


def test_the_card_says_what_is_known_of_guidance(tmp_path):
    """An earlier export holds the scale alone."""
    for name, more, said in (
        ("old", {}, "| guidance trained in | scale 2.5 |"),
        (
            "new",
            {"guidance_interval": [0.0, 0.8], "guidance_null_cond": "null.npz"},
            "to 0.8, away from null.npz",
        ),
    ):
        export_(tmp_path / name, equivariant(), description={"guidance_scale": 2.5, **more})
        assert said in (tmp_path / name / "README.md").read_text()
        assert load_student(tmp_path / name).config["description"] == {
            "guidance_scale": 2.5,
            **more,
        }


def test_the_card_says_which_masks_a_student_takes(tmp_path):
    export_(tmp_path / "plain", equivariant())
    assert "| lengths |" not in (tmp_path / "plain" / "README.md").read_text()
    export_(tmp_path / "padded", equivariant(), masks=["mask", "cond_mask"])
    tokens = load_student(tmp_path / "padded").horizon[0]
    said = f"unequal, by `mask=` (B, {tokens}) and `cond_mask=` (B, T_z), bool, True = real"
    assert f"| lengths | {said} |" in (tmp_path / "padded" / "README.md").read_text()


@pytest.mark.parametrize("license", [None, "mit", 'other: "mine"'])
def test_the_head_of_the_card_is_what_a_hub_reads(tmp_path, license):
    export_(tmp_path / "s", equivariant(), description={"license": license})
    card = (tmp_path / "s" / "README.md").read_text()
    _, head, page = card.split("---\n", 2)
    found = yaml.safe_load(head)
    assert found.pop("license", None) == license
    assert found["library_name"] == "fastgen-distill"
    assert {"few-step", "trajectories", "equivariant"} <= set(found["tags"])
    said = "not stated" if license is None else license
    assert page.startswith("\n# Few-step student") and f"Licence: {said}" in page


@pytest.mark.parametrize("license", ["", "two\nlines", 3, ["mit"]])
def test_a_licence_is_a_line_of_text(tmp_path, license):
    with pytest.raises(ValueError, match=r"expected description\.license as the name"):
        export_(tmp_path / "s", description={"license": license})
    assert not (tmp_path / "s").exists()


def test_the_card_says_how_to_load_it(tmp_path):
    scores = {"1": {"success": 0.99, "energy_ratio": 1.1}, "2": {"success": 0.999}}
    export_(
        tmp_path / "s",
        equivariant(),
        description={"summary": "Drives round a block.", "scores": scores},
    )
    card = (tmp_path / "s" / "README.md").read_text()
    assert (
        "Drives round a block." in card and "D4, folded" in card and "Licence: not stated" in card
    )
    assert "| 1 | 0.99 | 1.1 |" in card and "| 2 | 0.999 |  |" in card
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace("path/to/this/folder", str(tmp_path / "s"))
    )
    scope: dict = {}
    exec(compile(code, "card", "exec"), scope)
    assert scope["x"].shape == (1, 6, 2)


def trajectory_unet() -> nn.Module:
    torch.manual_seed(0)
    return TrajectoryUnet(4, 4, down_dims=(8, 16), num_groups=4, time_dim=8)


@pytest.mark.slow
@pytest.mark.parametrize("network", [equivariant, trajectory_unet])
def test_a_student_needs_torch_and_safetensors_only(tmp_path, network):
    sizes = {"horizon": (8, 2), "cond_horizon": (2, 2)} if network is trajectory_unet else {}
    student = load_student(export_(tmp_path / "s", network(), **sizes))
    x = student.sample(conditions(), num_samples=2, steps=2, generator=seeded())
    code = """
import importlib.abc, json, sys
blocked = {"escnn", "accelerate", "numpy", "pydantic", "yaml", "matplotlib", "tqdm", "scipy"}
blocked |= {"lie_learn"}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import torch, fastgen
student = fastgen.load_student(sys.argv[1])
z = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1))
x = student.sample(z, num_samples=2, steps=2, generator=torch.Generator().manual_seed(0))
loaded = blocked & {name.split(".")[0] for name in sys.modules}
print(json.dumps({"x": x.tolist(), "loaded": sorted(loaded)}))
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "s")]
    done = subprocess.run(
        command, cwd=Path(fastgen.__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["loaded"] == []
    assert torch.equal(torch.tensor(answer["x"]), x)


class OwnShape(nn.Module):
    """A network on samples of any shape, with labels or nothing as its condition."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 0.1]))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        return self.weight[0] * x + (
            0 if cond is None else self.weight[1] * cond.view(-1, *[1] * (x.ndim - 1))
        )


PLAIN = {"pack": 1, "x_normalizer": None, "z_normalizer": None}


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4), (2, 3, 4, 5), (6, 2)])
@pytest.mark.parametrize("cond", [None, torch.tensor([2, 0, 1])])
def test_a_student_of_any_shape_comes_back(tmp_path, shape, cond):
    description = {"condition": "none" if cond is None else "integers (B,)"}
    path = export_(tmp_path / "s", OwnShape(), horizon=shape, description=description, **PLAIN)
    student = load_student(path, network=OwnShape())
    noise = torch.randn(3, *shape, generator=seeded())
    x = student.sample(cond, noise=noise, steps=1)
    assert torch.equal(
        x, sample_student(OwnShape(), noise, [T_LIST[0], 0.0], cond, sample_type="sde")
    )
    assert json.loads((path / "config.json").read_text())["horizon"] == list(shape)
    card, text = (path / "README.md").read_text(), ", ".join(map(str, shape))
    wanted = "no condition" if cond is None else "z integers (B,)"
    assert f"| input -> output | {wanted} -> x (B, {text}), original units |" in card
    assert f"Samples of shape ({text}) in 4 network calls" in card and "waypoints" not in card
    if cond is None:
        code = (
            card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(path))
        )
        scope: dict = {"OwnShape": OwnShape}
        exec(compile(code.replace("OwnShape(...)", "OwnShape()"), "card", "exec"), scope)
        assert scope["x"].shape == (1, *shape)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("horizon, the shape of a sample, as whole numbers >= 1, got horizon=None", {}),
        ("as whole numbers >= 1, got horizon=", {"horizon": ()}),
        ("as whole numbers >= 1, got horizon=", {"horizon": (3, 0, 2)}),
        ("as whole numbers >= 1, got horizon=", {"horizon": (3.0,)}),
        (r"horizon \[T_x, d_x\], got horizon=", {"horizon": (4, 2, 2), "pack": 2}),
        (r"horizon \[T_x, d_x\], got horizon=", {"horizon": (2,), "x_normalizer": X_NORMALIZER}),
        ("T_x a multiple of pack = 4", {"horizon": (6, 2), "pack": 4}),
    ],
)
def test_shapes_that_cannot_be_sampled_are_not_exported(tmp_path, message, changes):
    with pytest.raises(ValueError, match=message):
        export_(tmp_path / "s", OwnShape(), **{**PLAIN, **changes})
    assert not os.listdir(tmp_path)


def test_the_built_in_networks_sample_trajectories_only(tmp_path):
    with pytest.raises(ValueError, match=r"horizon \[T_x, d_x\], got horizon="):
        export_(tmp_path / "s", dense(), horizon=(3, 4, 1), **PLAIN)


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_another_project_whose_files_are_called_alike_is_kept(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text('{"architectures": ["Mine"]}')
    with pytest.raises(ValueError, match=f"got a folder with {name}; choose another folder"):
        save_network(tmp_path / "mine", dense())
    assert os.listdir(tmp_path / "mine") == [name]
    assert (tmp_path / "mine" / name).read_text() == '{"architectures": ["Mine"]}'


def test_an_export_that_is_damaged_is_replaced_all_the_same(tmp_path):
    export_(tmp_path / "s")
    config = tmp_path / "s" / "config.json"
    config.write_text(config.read_text()[:300])
    export_(tmp_path / "s")
    assert load_student(tmp_path / "s").steps
