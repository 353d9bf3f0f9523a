"""Policy packages: what LeRobot's layout holds, run by onnxruntime and numpy alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastgen.export import Student, export_policy
from fastgen.export.exported import PARITY
from fastgen.export.onnx_optional import NORMAL, make_optional
from fastgen.normalizer import Normalizer
from support.packages import installed
from support.written import written_student

STATE, ACTION = "observation.state", "action"
# Runs the page's example, then what a test gives; nothing but onnxruntime and numpy can be loaded.
BARE = """
import sys
for name in ("torch", "safetensors", "onnx", "fastgen", "escnn"):
    sys.modules[name] = None
exec(open("example.py").read())
loaded = np.load("given.npz")
free = {"observation.state": loaded["z"]}
(repeated,) = session.run(["action"], {**free, "noise": loaded["noise"]})
drawn = [session.run(["action"], free)[0] for _ in range(2)]
np.savez("found.npz", repeated=repeated, drawn=np.stack(drawn))
"""


class Odd(nn.Module):
    """A network that any changes of signs go through."""

    def forward(self, x, t, Z):
        return torch.tanh(x) - 0.5 * Z.mean(1, keepdim=True) * t[:, None, None].to(x.dtype)


@pytest.fixture(scope="module")
def student():
    """One of a single call, with the symmetry of a mirror."""
    return Student(
        Odd().eval(),
        t_list=(0.999, 0.0),
        steps=[1],
        sample_type="ode",
        pred_type="flow",
        horizon=(6, 2),
        cond_horizon=(2, 2),
        x_normalizer=Normalizer([3.0, 0.0], torch.tensor([[0.5, 0.0], [0.0, 2.0]])),
        z_normalizer=Normalizer([1.0, 0.0], torch.eye(2)),
        config={"checksum": "of the student"},
    )


@pytest.fixture(scope="module")
def package(student, tmp_path_factory):
    installed("onnxruntime", since=(3, 11))
    folder = tmp_path_factory.mktemp("package") / "policy"
    rep = ["trivial", "sign"]
    export_policy(student, folder, group="C2", in_rep=rep, cond_rep=rep)
    return folder


def manifest_of(package: Path) -> dict:
    return json.loads((package / "manifest.json").read_text())


@pytest.mark.slow
def test_a_package_is_in_the_layout_of_lerobot(package, student):
    assert set(os.listdir(package)) == {
        *("manifest.json", "model.onnx", "stats.safetensors", "README.md")
    }
    manifest = manifest_of(package)
    assert (manifest["format"], manifest["version"]) == ("policy_package", "1.0")
    model = manifest["model"]
    assert model["runner"] == {"type": "single_pass"} and model["n_obs_steps"] == 2
    assert set(model["artifacts"].values()) == {"model.onnx"}
    for processor in (*model["preprocessors"], *model["postprocessors"]):
        assert processor["mode"] == "identity" and (package / processor["artifact"]).exists()
    robot = manifest["hardware"]["robots"][0]
    assert robot["state"]["shape"] == robot["action"]["shape"] == [2]
    stats = load_file(package / "stats.safetensors")
    for feature, normalizer in ((ACTION, student.x_normalizer), (STATE, student.z_normalizer)):
        assert torch.equal(stats[f"{feature}/mean"], normalizer.mean.float())
        assert torch.equal(stats[f"{feature}/std"], normalizer.scale.diag().float())


@pytest.mark.slow
def test_a_manifest_certifies_the_file(package, student):
    own = manifest_of(package)["fastgen"]
    assert own["parity"] <= PARITY and own["student"] == student.config["checksum"]
    errors = own["equivariance"]["errors"]
    assert own["equivariance"]["group"] == "C2" and len(errors) == 2 and max(errors.values()) < 1e-5
    assert [each["name"] for each in own["inputs"] if not each.get("optional")] == [STATE]
    page = (package / "README.md").read_text()
    assert f"{max(errors.values()):.2g} at most, under" in page


@pytest.mark.slow
def test_the_pages_example_runs_with_onnxruntime_and_numpy_alone(package, student, tmp_path):
    page = (package / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    (tmp_path / "example.py").write_text(example[1])
    os.symlink(package / "model.onnx", tmp_path / "model.onnx")
    rows = 2000
    z = torch.randn(1, 2, 2).expand(rows, -1, -1)
    noise = torch.randn(rows, *student.horizon)
    np.savez(tmp_path / "given.npz", z=z.numpy(), noise=noise.numpy())
    run = [sys.executable, "-I", "-c", BARE]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 6, 2)" and done.stderr == ""
    found = np.load(tmp_path / "found.npz")
    expected = student.sample(z, noise=noise)
    torch.testing.assert_close(torch.tensor(found["repeated"]), expected, rtol=0, atol=PARITY)
    # Noise of its own: another one at each run, of the same law.
    first, second = found["drawn"]
    assert (first != second).mean() > 0.99
    deviation = expected.std(0)
    off = torch.tensor(first.mean(0)) - expected.mean(0)
    assert float((off / deviation).abs().max()) < 5 * (2 / rows) ** 0.5
    torch.testing.assert_close(torch.tensor(first.std(0)), deviation, rtol=0.15, atol=0)


def test_a_student_of_no_trajectories_or_without_a_condition_is_refused(tmp_path):
    installed("onnxruntime", since=(3, 11))
    with pytest.raises(ValueError, match=r"trajectories \(T_x, d_x\) for a policy, got one of"):
        export_policy(written_student("patches"), tmp_path / "out")
    student = written_student("unet")
    student.cond_horizon = None
    student.cond_sizes = {}
    with pytest.raises(ValueError, match="a student with a condition, got one without"):
        export_policy(student, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_what_is_left_out_is_filled_and_what_is_given_is_kept(tmp_path):
    onnx = installed("onnx", since=(3, 11))
    runtime = installed("onnxruntime", since=(3, 11))
    from onnx import TensorProto, helper

    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [
        helper.make_node("Add", ["z", "noise"], ["sum"]),
        helper.make_node("Identity", ["mask"], ["kept"]),
    ]
    inputs = [
        value("z", TensorProto.FLOAT, ["B", 3]),
        value("noise", TensorProto.FLOAT, ["B", 3]),
        value("mask", TensorProto.BOOL, ["B", 2]),
    ]
    outputs = [value("sum", TensorProto.FLOAT, ["B", 3]), value("kept", TensorProto.BOOL, ["B", 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opset = [helper.make_opsetid("", 18)]
    file = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), file)
    make_optional(file, {"noise": NORMAL, "mask": True}, "z")

    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(file), options)
    assert [each.name for each in session.get_inputs()] == ["z"]
    z = np.full((4000, 3), 7, np.float32)
    total, kept = session.run(None, {"z": z})
    assert kept.shape == (4000, 2) and kept.all()
    assert abs(total.mean(0) - 7).max() < 5 / 4000**0.5 and abs(total.std(0) - 1).max() < 0.06
    noise = np.random.default_rng(0).standard_normal((4000, 3)).astype(np.float32)
    mask = noise[:, :2] > 0
    total, kept = session.run(None, {"z": z, "noise": noise, "mask": mask})
    assert (total == z + noise).all() and (kept == mask).all()
    with pytest.raises(Exception, match="must be >= 0"):
        session.run(None, {"z": z[:10], "noise": noise})
