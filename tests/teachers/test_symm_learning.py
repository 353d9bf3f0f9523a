"""The library that our backbone comes from: its own transformer is distilled, exported and loaded,
and its student has the symmetry of its teacher.

Importing it changes escnn's classes, so it has a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys, warnings
import torch
from escnn.group import CyclicGroup, DihedralGroup
from safetensors.torch import load_file
from symm_learning.models.control.econd_transformer import eCondTransformer
from symm_learning.representation_theory import direct_sum
from fastgen.distillation import distill
from fastgen.export import load_student
from fastgen.testing import check_distills
from support.toy import ToyTask, toy_config

def build(group, standard, **options):
    sizes = {"in_horizon": 2, "cond_horizon": 1, "num_layers": 1, "num_attention_heads": 2}
    return eCondTransformer(
        direct_sum([standard] * 2), standard, None, embedding_dim=2 * group.order(), **sizes,
        **options,
    )

torch.manual_seed(0)
c4, d3 = CyclicGroup(4), DihedralGroup(3)
others = {"num_cond_layers": 1, "norm_module": "layernorm", "pos_encoding": "additive_relative"}
check_distills(build(d3, d3.irrep(1, 1), **others), torch.randn(3, 2, 4), torch.randn(3, 1, 2))

standard = c4.irrep(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    cfg = toy_config(sys.argv[1] + "/run", evaluate_every=100)
    run = distill(cfg, teacher=build(c4, standard), task=ToyTask())
file = run / "student" / "student.safetensors"
build(c4, standard).load_state_dict(load_file(file), strict=True)
student = load_student(run / "student", network=build(c4, standard))
student.sample_type = "ode"  # fresh noise can't be turned with the rest
noise, cond = torch.randn(16, 4, 2), torch.randn(16, 1, 2)
samples = student.sample(cond, noise=noise)
errors = []
for g in c4.elements:
    turn = torch.tensor(standard(g), dtype=torch.float32).T
    turned = student.sample(cond @ turn, noise=noise @ turn)
    errors.append(float((turned - samples @ turn).norm() / samples.norm()))
print(json.dumps({
    "errors": errors,
    "warnings": sorted({str(w.message) for w in caught if "get_optim" in str(w.message)}),
}))
"""


def test_its_transformer_is_distilled_and_its_student_is_equivariant(tmp_path):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["errors"]) == 4
    assert max(found["errors"]) <= 2e-6
    (said,) = found["warnings"]
    assert said.startswith("get_optim_groups of eCondTransformer raises ValueError: Unrecognized")
