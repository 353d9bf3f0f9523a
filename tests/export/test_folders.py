"""A student folder gives back the sampler that went in; anything else is refused in one line."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fastgen
from fastgen._core import tensor_files
from fastgen.export import (
    export_student,
    folders as export,
    load_network,
    load_student,
    save_network,
    schema,
)
from fastgen.export.built_in import NETWORKS
from fastgen.models import build_model
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.normalizer import Normalizer
from fastgen.samplers import sample_student
from support.networks import GROUPS, dense, equivariant, shaken
from support.rounding import MULTIPLE, sway

T_LIST = [0.999, 0.7, 0.4, 0.2, 0.0]
X_NORMALIZER = Normalizer([3.0, -2.0], [[2.0, 0.5], [0.0, 0.25]])
Z_NORMALIZER = Normalizer([1.0, 0.1], [[0.7, 0.0], [0.0, 1.3]])


def export_(path: Path, network: nn.Module | None = None, **changes) -> Path:
    options = {"t_list": T_LIST, "sample_type": "sde", "pack": 2}
    options |= {"x_normalizer": X_NORMALIZER, "z_normalizer": Z_NORMALIZER}
    export_student(path, dense() if network is None else network, **{**options, **changes})
    return path


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conditions(n: int = 3) -> Tensor:
    return torch.randn(n, 2, 2, generator=seeded(1))


# ---- What comes back -----------------------------------------------------------------------------


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


def test_a_student_needs_torch_and_safetensors_only(tmp_path):
    student = load_student(export_(tmp_path / "s", equivariant()))
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
        command, cwd=Path(fastgen.__file__).parents[2], capture_output=True, text=True
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


# ---- What is refused -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return export_(tmp_path_factory.mktemp("good") / "s", description={"task": "ring"})


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "s"))


def refused(folder: Path, message: str) -> None:
    """Loading raises one line that names the folder's file and says `message`."""
    with pytest.raises(ValueError, match=message) as caught:
        load_student(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def edit(folder: Path, change, *, forge: bool = False) -> None:
    """Change config.json; `forge` also makes its checksum agree, as a hostile author would."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    if forge:
        schema.write_config(folder, config)
    else:
        (folder / "config.json").write_text(json.dumps(config))


def retensor(folder: Path, change, *, forge: bool) -> None:
    """Change the tensors; `forge` also makes size and checksums agree."""
    path = folder / "student.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    if forge:
        entry = {"bytes": path.stat().st_size, "sha256": tensor_files.sha256(path)}
        edit(folder, lambda config: config["tensors"].update(entry), forge=True)


@pytest.mark.parametrize("name", ["student.safetensors", "config.json"])
def test_a_missing_or_truncated_file_is_named(folder, name):
    path = folder / name
    data = path.read_bytes()
    for size in (0, 1, 7, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:size])
        refused(folder, f"{name}: expected .*(truncated|edited)")
    path.unlink()
    refused(folder, f"{name}: expected a file, found none; export it again or copy it anew")
    path.mkdir()
    refused(folder, f"{name}: expected a file, found something that is not a file")


@pytest.mark.parametrize("name", ["student.safetensors", "config.json"])
def test_any_flipped_bit_is_found(folder, name):
    data = (folder / name).read_bytes()
    places = torch.randperm(len(data), generator=seeded())[:60].tolist()
    for place in [0, 8, len(data) - 2, *places]:
        changed = bytearray(data)
        changed[place] ^= 1
        (folder / name).write_bytes(changed)
        refused(folder, "expected")


def test_spaces_and_the_order_of_keys_may_change(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    load_student(folder)


def test_an_edited_value_is_found(folder):
    edit(folder, lambda c: c["t_list"].__setitem__(1, 0.71))
    refused(folder, "config.json: .*checksum.*the file was edited")


def test_other_kinds_of_folder_are_told_apart(folder, tmp_path):
    refused(tmp_path / "nothing", "config.json: expected a file, found none")
    save_network(tmp_path / "t", dense())
    refused(tmp_path / "t", "expected format 'fastgen-student', got 'fastgen-network'")
    with pytest.raises(
        ValueError, match="expected format 'fastgen-network', got 'fastgen-student'"
    ):
        load_network(folder)
    edit(folder, lambda c: c.update(format_version=2), forge=True)
    refused(folder, "expected format_version 1, got 2; use the fastgen-distill that wrote it")


@pytest.mark.parametrize(
    "name", ["../s/student.safetensors", "/etc/passwd", "model.safetensors", "", None, 3, ["x"]]
)
def test_the_tensor_file_has_one_name(folder, name):
    edit(folder, lambda c: c["tensors"].update(file=name), forge=True)
    refused(folder, "expected the tensor file 'student.safetensors', got")


def test_tensors_must_be_those_of_the_network(folder):
    changes = {
        "unexpected ../../evil": lambda t: t.update({"../../evil": torch.zeros(2)}),
        "missing head.bias, head.weight": lambda t: (t.pop("head.bias"), t.pop("head.weight")),
        r"expected head.bias of shape \(4,\), got \(5,\)": lambda t: t.update(
            {"head.bias": torch.zeros(5)}
        ),
        "expected head.bias of dtype torch.float32, got F64": lambda t: t.update(
            {"head.bias": torch.zeros(4).double()}
        ),
        "expected head.bias of dtype torch.float32, got I32": lambda t: t.update(
            {"head.bias": torch.zeros(4).int()}
        ),
    }
    original = (folder / "student.safetensors").read_bytes()
    for message, change in changes.items():
        (folder / "student.safetensors").write_bytes(original)
        retensor(folder, change, forge=False)
        refused(folder, "student.safetensors: expected .* (bytes|sha256)")
        retensor(folder, lambda t: None, forge=True)
        refused(folder, f"student.safetensors: expected .*{message.removeprefix('expected ')}")


def test_a_file_that_only_looks_like_safetensors_is_refused(folder):
    path = folder / "student.safetensors"
    size = path.stat().st_size
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    for data in (
        b"\x80\x02cposix\nsystem",
        b"\xff" * 64,
        len(header).to_bytes(8, "little") + header,
        b"",
    ):
        path.write_bytes(data.ljust(size, b"\0"))
        entry = {"bytes": path.stat().st_size, "sha256": tensor_files.sha256(path)}
        edit(folder, lambda config, entry=entry: config["tensors"].update(entry), forge=True)
        refused(folder, "student.safetensors: expected a safetensors file")


@pytest.mark.parametrize(
    "key", ["embedding_dim", "in_horizon", "num_layers", "num_cond_layers", "num_attention_heads"]
)
@pytest.mark.parametrize("value", [10**9, 10**30, -1, 8.0, "8", None, True])
def test_sizes_beyond_the_tensors_cost_nothing(folder, key, value):
    edit(folder, lambda c: c["network"].update({key: value}), forge=True)
    started = time.perf_counter()
    refused(folder, "config.json: expected")
    assert time.perf_counter() - started < 2.0


def test_shapes_are_compared_before_memory_is_allocated(folder, monkeypatch):
    # As large as the tensors make believable: a long table, and a network of that length which was
    # never there.
    retensor(folder, lambda t: t.update({"pos_emb.weight": torch.zeros(50_000, 2)}), forge=True)
    edit(folder, lambda c: c["network"].update(in_horizon=50_000, in_dim=4), forge=True)
    edit(folder, lambda c: c.update(horizon=[100_000, 2]), forge=True)
    devices = set()
    monkeypatch.setattr(
        export, "build_model", lambda c: devices.add(torch.empty(0).device.type) or build_model(c)
    )
    refused(folder, r"expected pos_emb.weight of shape \(50000, 8\), got \(50000, 2\)")
    assert devices == {"meta"}


@pytest.mark.parametrize(
    "name", ["os.system", "eCondTransformerRegressor", "torch.nn.Linear", "", None, ["x"], {}]
)
def test_a_student_names_dense_built_in_networks_only(folder, name):
    edit(folder, lambda c: c["network"].update({"class": name}), forge=True)
    refused(folder, "expected network.class among CondTransformerRegressor, got")


def leaves(value, path=()):
    if isinstance(value, dict | list):
        yield path, value
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path, value


def test_no_forged_value_does_worse_than_an_error(folder):
    original = json.loads((folder / "config.json").read_text())
    values = [None, True, -1, 10**30, 1e308, "\ud800", [[]], {"a": 1}]
    refusals = 0
    for path, _ in list(leaves(original))[1:]:
        if path == ("checksum",):
            continue
        for value in values:
            config = json.loads(json.dumps(original))
            place = config
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            text = json.dumps({**config, "checksum": schema.config_checksum(config)})
            (folder / "config.json").write_text(text)
            try:
                load_student(folder)
            except ValueError as error:
                refusals += 1
                assert "\n" not in str(error) and len(str(error)) < 1500
    assert refusals > 300


def test_an_equivariant_config_is_bounded_too(tmp_path):
    save_network(tmp_path / "t", equivariant())
    original = (tmp_path / "t" / "config.json").read_text()
    for key, value in {
        "group": "D400000",
        "embedding_dim": 10**9,
        "num_layers": 10**9,
        "in_rep": ["irrep:" + "(" * 10_000],
        "cond_rep": [{"irreps": [[9, 9]], "change_of_basis": [[1.0]]}],
        "out_rep": [{"matrices": "/etc/passwd"}],
        "in_horizon": 4,
    }.items():
        (tmp_path / "t" / "config.json").write_text(original)
        edit(
            tmp_path / "t",
            lambda c, key=key, value=value: c["network"].update({key: value}),
            forge=True,
        )
        with pytest.raises(ValueError, match=str(tmp_path)) as caught:
            load_network(tmp_path / "t")
        assert "\n" not in str(caught.value)


def test_the_schema_knows_every_argument_of_the_networks():
    for name, arguments in NETWORKS.items():
        signature = set(inspect.signature(getattr(fastgen.models, name).__init__).parameters) - {
            "self"
        }
        assert set(arguments) - {"group"} == signature
    assert set(dense().config) == {"class", *NETWORKS["CondTransformerRegressor"]}
    assert set(equivariant().config) == {"class", *NETWORKS["eCondTransformerRegressor"]}


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("t_list strictly decreasing from at most 1.0 to 0.0", {"t_list": [0.9, 0.5]}),
        ("t_list strictly decreasing", {"t_list": [0.5, 0.9, 0.0]}),
        ("t_list strictly decreasing", {"t_list": [1.5, 0.0]}),
        ("t_list strictly decreasing", {"t_list": [0.0]}),
        ("t_list strictly decreasing", {"t_list": [float("nan"), 0.0]}),
        (r"t_list\[0\] < 1 for pred_type eps", {"t_list": [1.0, 0.0], "pred_type": "eps"}),
        (r"steps that divide len\(t_list\) - 1 = 4, each once, got steps=\[3\]", {"steps": [3]}),
        ("steps that divide", {"steps": []}),
        ("steps that divide", {"steps": [2, 2]}),
        ("sample_type ode or sde, got sample_type='ddim'", {"sample_type": "ddim"}),
        ("pred_type flow, x0 or eps, got pred_type='v'", {"pred_type": "v"}),
        ("pack as a whole number >= 1 that divides the network's in_dim = 4, got 3", {"pack": 3}),
        ("fit the network's in_horizon, in_dim, out_dim", {"horizon": (8, 2)}),
        (r"cond_horizon \[2, 2\], the network's", {"cond_horizon": (3, 2)}),
        ("x_normalizer of 2 channels, got 3", {"x_normalizer": Normalizer.identity(3)}),
        ("z_normalizer of 2 channels, got 1", {"z_normalizer": Normalizer.identity(1)}),
    ],
)
def test_impossible_students_are_not_exported(tmp_path, message, changes):
    with pytest.raises(ValueError, match=message):
        export_(tmp_path / "s", **changes)
    assert not os.listdir(tmp_path)


def test_a_failed_export_leaves_the_folder_there(folder, monkeypatch):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    broken = dense()
    broken.head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in head.bias"):
        export_(folder, broken)
    with pytest.raises(TypeError, match="description.f to hold numbers"):
        export_(folder, description={"f": object()})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_config", full)
    with pytest.raises(OSError, match="cannot write .*s: No space left on device"):
        export_(folder, shaken(dense()))
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    assert os.listdir(folder.parent) == ["s"]
    monkeypatch.undo()
    export_(folder, shaken(dense()))
    load_student(folder)
    assert (folder / "student.safetensors").read_bytes() != before["student.safetensors"]


def test_a_network_made_for_longer_samples_is_exported_for_these(tmp_path):
    student = load_student(
        export_(tmp_path / "s", dense(), pack=1, horizon=(2, 4), x_normalizer=None)
    )
    assert student.sample(conditions()).shape == (3, 2, 4)
    with pytest.raises(ValueError, match="horizon and pack = 1 that fit"):
        export_(tmp_path / "t", dense(), pack=1, horizon=(4, 4), x_normalizer=None)
