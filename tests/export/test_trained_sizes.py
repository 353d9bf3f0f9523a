"""A condition of a size that no training row had is refused, by students and by teachers' folders:
their networks would answer, and be wrong."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from fastgen.config import DataConfig, TrainTeacherConfig
from fastgen.data import build_data
from fastgen.export import export_student, load_network, load_student, save_network
from fastgen.export.schema import config_checksum
from fastgen.jobs.checks import check_plan
from fastgen.jobs.pretraining import build_network
from fastgen.jobs.sources import load_teacher
from fastgen.samplers import sample_student, sample_teacher
from support.folders import conditions, export_, seeded
from support.networks import dense
from support.sources import config
from support.toy import ToyTask, ToyTeacher, setup_of, toy_config

# The network takes one or two tokens of two channels.
BOTH = {"Z": [(2, 2), (2, 2)]}


class Sum(nn.Module):
    """x plus the mean of each member of its condition, whatever their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, t, cond):
        parts = cond.values() if isinstance(cond, dict) else cond
        means = [part.reshape(len(part), -1).mean(1)[:, None] for part in parts]
        return self.weight * x + sum(means)


# ---- Students ------------------------------------------------------------------------------------


def test_a_history_shorter_than_any_of_training_is_refused(tmp_path):
    student = load_student(export_(tmp_path / "s", cond_sizes=BOTH))
    assert student.sample(conditions()).shape == (3, 6, 2)
    message = r"expected Z of shape \(B, 2, 2\), as the student was trained, got \(3, 1, 2\)"
    with pytest.raises(ValueError, match=message):
        student.sample(conditions()[:, :1])
    assert "Z (B, 2, 2) -> X" in repr(student)
    card = (tmp_path / "s" / "README.md").read_text()
    assert "| input -> output | z (B, 2, 2) -> x" in card and "torch.zeros(1, 2, 2)" in card


def test_lengths_that_were_trained_are_sampled(tmp_path):
    student = load_student(export_(tmp_path / "s", cond_sizes={"Z": [(1, 2), 2]}))
    for length in (1, 2):
        assert student.sample(conditions()[:, :length]).shape == (3, 6, 2)
    with pytest.raises(ValueError, match=r"expected Z of shape \(B, 1\.\.2, 2\), got \(3, 3, 2\)"):
        student.sample(torch.zeros(3, 3, 2))


def test_a_history_longer_than_any_of_training_is_refused(tmp_path):
    student = load_student(export_(tmp_path / "s", cond_sizes={"Z": [1, 2]}))
    with pytest.raises(ValueError, match=r"\(B, 1, 2\), as the student was trained, got \(3, 2,"):
        student.sample(conditions())


def test_a_folder_that_does_not_say_samples_as_before(tmp_path):
    student = load_student(export_(tmp_path / "s"))
    assert student.cond_sizes is None and "cond_sizes" not in student.config
    assert student.sample(conditions()[:, :1], generator=seeded()).shape == (3, 6, 2)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"goal": torch.zeros(4, 1, 3), "map": torch.zeros(4, 5, 5)}, r"Z\.goal of shape \(B, 2,"),
        ({"goal": torch.zeros(4, 2, 3), "map": torch.zeros(4, 5, 4)}, r"Z\.map of shape \(B, 5, 5"),
        ({"goal": torch.zeros(4, 2, 3)}, r"Z\.map of shape \(B, 5, 5\).*got \{goal: \(4, 2, 3\)\}"),
        (None, r"Z\.goal of shape"),
        (torch.zeros(4, 2, 3), r"Z\.goal of shape .*got \(4, 2, 3\)"),
    ],
)
def test_each_member_of_a_condition_is_checked(tmp_path, cond, message):
    sizes = {"Z.goal": [2, 3], "Z.map": [5, 5]}
    export_student(tmp_path, Sum(), t_list=[1.0, 0.0], horizon=(2,), cond_sizes=sizes)
    student = load_student(tmp_path, network=Sum())
    right = {"goal": torch.zeros(4, 2, 3), "map": torch.zeros(4, 5, 5)}
    assert student.sample(right).shape == (4, 2)
    with pytest.raises(ValueError, match=message):
        student.sample(cond)


def test_tuples_are_checked_by_their_places(tmp_path):
    sizes = {"Z.0": [2, 3], "Z.1": []}
    export_student(tmp_path, Sum(), t_list=[1.0, 0.0], horizon=(2,), cond_sizes=sizes)
    student = load_student(tmp_path, network=Sum())
    assert student.sample((torch.zeros(4, 2, 3), torch.zeros(4))).shape == (4, 2)
    with pytest.raises(ValueError, match=r"expected Z\.0 of shape \(B, 2, 3\)"):
        student.sample((torch.zeros(4, 1, 3), torch.zeros(4)))


@pytest.mark.parametrize(
    "sizes",
    [{"Z": [3, 2]}, {"Z": [(0, 2), 2]}, {"Z": [2, 1]}, {"Z": [2]}, {"X": [2, 2]}, {"Z.a": [2, 2]}]
    + [{}, {"Z": [(2, 1), 2]}],
)
def test_sizes_that_the_network_has_not_are_not_exported(tmp_path, sizes):
    with pytest.raises(ValueError, match="expected .*sizes"):
        export_(tmp_path / "s", cond_sizes=sizes)


@pytest.mark.parametrize("sizes", [3, {"Z": 2}, {"Z": [[1, 2, 3], 2]}, {"Z": [9, 2]}, {"A": []}])
def test_a_folder_with_forged_sizes_is_one_line(tmp_path, sizes):
    export_(tmp_path / "s", cond_sizes=BOTH)
    file = tmp_path / "s" / "config.json"
    content = json.loads(file.read_text())
    content["cond_sizes"] = sizes
    content["checksum"] = config_checksum(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="cond_sizes") as caught:
        load_student(tmp_path / "s")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("masks", [3, "mask", ["mask", "mask"], ["padding"], [["mask"]], {}])
def test_a_folder_with_forged_masks_is_one_line(tmp_path, masks):
    export_(tmp_path / "s", masks=["mask"])
    assert load_student(tmp_path / "s").masks == ("mask",)
    file = tmp_path / "s" / "config.json"
    content = json.loads(file.read_text())
    content["masks"] = masks
    content["checksum"] = config_checksum(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected masks among mask, cond_mask") as caught:
        load_student(tmp_path / "s")
    assert "\n" not in str(caught.value)


# ---- Teachers ------------------------------------------------------------------------------------


def trained(tmp_path, sizes, **description) -> nn.Module:
    network = dense()
    network.trained_sizes = sizes
    save_network(tmp_path / "t", network, description=description)
    return load_network(tmp_path / "t")[0]


def test_the_samplers_refuse_what_a_folder_says_was_not_trained(tmp_path):
    network = trained(tmp_path, {"X": [3, 4], "Z": [(2, 2), 2]})
    noise = torch.randn(5, 3, 4, generator=seeded())
    z = torch.zeros(5, 2, 2)
    sample_teacher(network, noise, 2, z)
    sample_student(network, noise, [1.0, 0.0], z)
    for bad_noise, bad_z, member in ((noise, z[:, :1], "Z"), (noise[:, :2], z, "X")):
        with pytest.raises(ValueError, match=f"expected {member} of shape .*, as the network was"):
            sample_teacher(network, bad_noise, 2, bad_z)
        with pytest.raises(ValueError, match=f"expected {member} of shape .*, as the network was"):
            sample_student(network, bad_noise, [1.0, 0.0], bad_z)


RECIPE = {"task": "file", "path": "linear", "prediction": "flow", "data": {}, "seed": 0, "steps": 1}


def test_an_earlier_folder_of_the_recipe_was_trained_on_the_networks_own_sizes(tmp_path):
    save_network(tmp_path / "t", dense(), description=RECIPE)
    network, _ = load_network(tmp_path / "t")
    assert network.trained_sizes == {"X": [(3, 3), (4, 4)], "Z": [(2, 2), (2, 2)]}
    save_network(tmp_path / "t", dense(), description={"data": {}})
    assert not hasattr(load_network(tmp_path / "t")[0], "trained_sizes")


def test_a_teacher_is_not_distilled_on_a_shorter_history(tmp_path):
    """The check before training; the folder's network is also read through its declaration."""
    data = {"name": "ring", "size": 64}
    cfg = TrainTeacherConfig.model_validate(
        {"data": data, "model": {"equivariant": False, "embedding_dim": 8, "num_layers": 1}}
    )
    task = build_data(DataConfig.model_validate(data))
    save_network(tmp_path / "t", build_network(cfg, task), description=RECIPE)
    cfg = config({"folder": str(tmp_path / "t"), "time_scale": 2.0})
    teacher = load_teacher(cfg)
    x0, cond = task.train.network_inputs()
    check_plan(setup_of(cfg, teacher, x0, cond))
    with pytest.raises(ValueError, match=r"\(B, 2, 2\), as the teacher was trained, got \(64, 1,"):
        check_plan(setup_of(cfg, teacher, x0, cond[:, :1]))
    with pytest.raises(ValueError, match=r"expected X of shape \(B, 4, 8\), as the teacher was"):
        check_plan(setup_of(cfg, teacher, x0[:, :2], cond))


def test_a_network_may_speak_of_its_condition_alone():
    network: Any = dense()
    network.trained_sizes = {"Z": [2, 2]}
    noise = torch.randn(5, 2, 4, generator=seeded())
    sample_student(network, noise, [1.0, 0.0], torch.zeros(5, 2, 2))
    with pytest.raises(ValueError, match=r"expected Z of shape \(B, 2, 2\), as the network was"):
        sample_student(network, noise, [1.0, 0.0], torch.zeros(5, 1, 2))


@pytest.mark.parametrize("sizes", [[8, 16], {"Z": 2}, "large"])
def test_an_attribute_that_is_no_sizes_is_named(sizes):
    network = dense()
    network.trained_sizes = sizes
    with pytest.raises(ValueError, match="trained_sizes of the network: expected sizes as"):
        sample_student(network, torch.zeros(5, 3, 4), [1.0, 0.0], torch.zeros(5, 2, 2))


def test_networks_that_say_nothing_are_distilled_as_before():
    x0, cond = ToyTask().train.network_inputs()
    check_plan(setup_of(toy_config("unused"), ToyTeacher(), x0, cond))
