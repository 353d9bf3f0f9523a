"""Students written for other programs: what onnxruntime and `torch.export` make of the file is what
`Student.sample` makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from fastgen.channel_kinds import ChannelKinds, KindNormalizer
from fastgen.export import export_onnx, export_pt2, export_student, load_student
from fastgen.export.exported import MANIFEST, PARITY
from fastgen.export.onnx_graph import narrow_products
from fastgen.export.sampler_inputs import example_inputs
from fastgen.export.whole_sampler import WholeSampler
from fastgen.normalizer import Normalizer
from support.networks import equivariant
from support.packages import installed
from support.written import CONDITIONS, STUDENTS, written_student

# Writing a file takes seconds; that the module samples as the student is asked of all of them.
WRITTEN = pytest.mark.slow
ONNX = ["causal tokens, one observation", "betas eps"]
PT2 = ["tokens of three sde calls"]


def onnxruntime():
    """Runs ONNX files; torch writes them with onnx and onnxscript."""
    return installed("onnxruntime", since=(3, 11))


def inputs_of(student, sampler, rows, **options):
    tensors = example_inputs(student, sampler.inputs, rows, **options)
    return {each.name: x.numpy() for each, x in zip(sampler.inputs, tensors, strict=True)}


# ---- The module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDENTS)
def test_the_whole_sampler_is_the_students(name):
    student = written_student(name)
    cond = CONDITIONS.get(name)
    for steps in student.steps:
        sampler = WholeSampler(student, steps, cond).eval()
        for rows in (1, 3):
            tensors = example_inputs(student, sampler.inputs, rows, cond=cond, seed=rows)
            with torch.no_grad():
                x = sampler(*tensors)
            torch.testing.assert_close(x, sampler.sampled(tensors, rows), rtol=1e-6, atol=1e-6)
            assert bool(x.std() > 1e-3)


def test_a_prefix_may_have_another_length_in_each_row():
    student = written_student("tokens with a prefix")
    sampler = WholeSampler(student, 1).eval()
    names = [each.name for each in sampler.inputs]
    tensors = example_inputs(student, sampler.inputs, 3)
    tensors[names.index("prefix_length")] = torch.tensor([0, 2, 4])
    x = sampler(*tensors)
    for row, given in enumerate((0, 2, 4)):
        alone = [tensor[row : row + 1] for tensor in tensors]
        torch.testing.assert_close(x[row : row + 1], sampler.sampled(alone), rtol=1e-5, atol=1e-5)
        prefix = tensors[names.index("prefix")][row, :given]
        assert torch.equal(x[row, :given], prefix)


def test_a_student_is_refused_in_words():
    with pytest.raises(ValueError, match="what it looks like.*got none; give them as cond="):
        WholeSampler(written_student("members"))
    student = written_student("tokens")
    with pytest.raises(ValueError, match="steps among those trained"):
        WholeSampler(student, 3)
    student.network.half()
    with pytest.raises(ValueError, match="in float32 or float64, got torch.float16"):
        WholeSampler(student)


@pytest.mark.parametrize(("side", "channels"), [("x", "action"), ("z", "observation")])
def test_angles_and_rotations_are_refused(side, channels, tmp_path):
    student = written_student("tokens")
    kinds = ChannelKinds(2, {"angle": [[1]]})
    normalizer = KindNormalizer.around(kinds, Normalizer([0.0], torch.eye(1)))
    setattr(student, f"{side}_normalizer", normalizer)
    with pytest.raises(
        ValueError, match=f"plain numbers, got one with {channels} channels of kind angle"
    ):
        export_pt2(student, tmp_path / "out")
    assert os.listdir(tmp_path) == []


# ---- Files ---------------------------------------------------------------------------------------


@WRITTEN
@pytest.mark.parametrize("name", ONNX)
def test_onnxruntime_samples_as_the_student(name, tmp_path):
    runtime = onnxruntime()
    student = written_student(name)
    manifest = export_onnx(student, tmp_path / "out", cond=CONDITIONS.get(name))
    assert manifest == json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["parity"] <= PARITY and manifest["opset"] == 18
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert shapes == {each["name"]: each["shape"] for each in manifest["inputs"]}
    sampler = WholeSampler(student, None, CONDITIONS.get(name))
    given = inputs_of(student, sampler, 5, cond=CONDITIONS.get(name))
    (x,) = session.run(["x"], given)
    assert x.shape == (5, *student.horizon)


@WRITTEN
@pytest.mark.filterwarnings("error:No complete tensor")
@pytest.mark.parametrize("name", PT2)
def test_the_exported_program_samples_as_the_student(name, tmp_path):
    student = written_student(name)
    manifest = export_pt2(student, tmp_path / "out")
    assert manifest["parity"] <= PARITY
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    sampler = WholeSampler(student)
    tensors = example_inputs(student, sampler.inputs, 5)
    torch.testing.assert_close(program(*tensors), sampler.sampled(tensors), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A student with the symmetry of a square."""
    folder = tmp_path_factory.mktemp("folded") / "student"
    export_student(folder, equivariant(), t_list=[0.999, 0.0], pack=2)
    return folder


@WRITTEN
def test_a_file_has_the_symmetry_of_its_student_with_weights_of_any_size(folded, tmp_path):
    onnxruntime()
    written = {
        weights: export_onnx(folded, tmp_path / weights, weights=weights)
        for weights in ("float32", "float16")
    }
    half, whole = written["float16"], written["float32"]
    errors = whole["equivariance"]["errors"]
    assert len(errors) == 8 and max(errors.values()) < 1e-5
    assert whole["student"] == load_student(folded).config["checksum"]
    assert half["parity"] <= PARITY < half["error"]["largest"] < 0.05
    assert half["file"]["bytes"] < whole["file"]["bytes"]
    # The weights are rounded after the group was folded into them: its law holds to their digits.
    assert max(half["equivariance"]["errors"].values()) < 0.05


@WRITTEN
def test_whole_numbers_lose_little_and_keep_the_symmetry(folded, tmp_path):
    onnxruntime()
    manifest = export_onnx(folded, tmp_path / "int8", weights="int8")
    assert manifest["parity"] is None and 0 < manifest["error"]["rms"] < 0.1
    assert max(manifest["equivariance"]["errors"].values()) < 0.05
    assert set(os.listdir(tmp_path / "int8")) == {"model.onnx", MANIFEST}


def test_layers_at_the_datas_channels_are_narrow():
    onnx = installed("onnx", since=(3, 11))
    shapes = {"in": [4, 64], "up": [64, 256], "down": [256, 64], "time": [64, 64], "out": [64, 2]}
    nodes = [onnx.helper.make_node("MatMul", ["x", name], ["y"], name) for name in shapes]
    weights = [
        onnx.numpy_helper.from_array(torch.zeros(shape).numpy(), name)
        for name, shape in shapes.items()
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], [], weights)
    assert narrow_products(graph) == ["in", "out", "in_MatMul", "out_MatMul"]
    assert narrow_products(onnx.helper.make_graph([], "g", [], [])) == []


@WRITTEN
def test_a_file_that_samples_something_else_is_not_left_behind(tmp_path, monkeypatch):
    def other(self, tensors, seed=0):
        return torch.zeros(len(tensors[0]), *self.student.horizon)

    monkeypatch.setattr(WholeSampler, "sampled", other)
    with pytest.raises(ValueError, match="samples as the student to 1e-05"):
        export_pt2(written_student("vectors"), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'onnx.*pip install -e "\.\[onnx\]"'):
        export_onnx(written_student("tokens"), tmp_path / "out")


def test_weights_that_a_format_lacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown weights of pt2 'int8'"):
        export_pt2(written_student("tokens"), tmp_path / "out", weights="int8")
    assert os.listdir(tmp_path) == []


def test_nothing_loads_the_packages_of_a_format_that_is_not_asked_for():
    heavy = "{'onnx', 'onnxscript', 'onnxruntime', 'torch._dynamo'}"
    code = f"import sys, fastgen.export\nprint({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
