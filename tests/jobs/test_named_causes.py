"""What a teacher can't answer is said of the teacher: at which time, for which row and label, and
whether it was the null condition."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DistillConfig
from fastgen.data.samples import SampleData, SampleTask
from fastgen.distillation import distill
from fastgen.export.student import Student
from fastgen.jobs.checks import check_plan
from fastgen.jobs.evaluation import student_sampler, teacher_sampler
from fastgen.jobs.setup import guided_teacher
from support.toy import setup_of, toy_config

ROWS = 12
X = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(ROWS) % 3
GOALS = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1))
MASK = torch.ones(ROWS, 2)


class Members(nn.Module):
    """A flow whose condition has several members; `broken` puts NaN where it says."""

    def __init__(self, labels: int = 3, broken=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(2, 2)
        self.table = nn.Embedding(labels, 2)
        self.broken = broken

    def forward(self, x_t: Tensor, t: Tensor, cond) -> Tensor:
        parts = cond if isinstance(cond, dict) else dict(enumerate(cond))
        y = self.map(x_t) + t.to(x_t.dtype)[:, None]
        for part in parts.values():
            if part.ndim == 1:
                y = y + self.table(part)
            elif part.dtype == torch.bool or part.shape[1] == 2:
                # Attention to the tokens that a mask leaves.
                weight = part.to(y.dtype)
                y = y + (weight * y).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
            else:
                y = y + part.mean(1, keepdim=True)
        if self.broken is not None:
            y = y.masked_fill(self.broken(x_t, t, parts)[:, None], float("nan"))
        return y


def config(null: str = "zeros", guided: bool = True, **changes) -> DistillConfig:
    values = toy_config("unused").model_dump() | changes
    if guided:
        values["dmd"] = {"guidance_scale": 2.0}
        values["teacher"]["null_cond"] = null
    return DistillConfig.model_validate(values)


def guided(cond, null: str = "zeros") -> Any:
    return guided_teacher(config(null), Members(), SampleData(X, cond)).null_cond


# ---- Null conditions of several members ----------------------------------------------------------


GOAL = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("cond", [{"goal": GOAL, "other": GOALS}, (GOAL, (GOALS, GOAL))])
def test_zeros_are_zeros_of_every_member(cond):
    null = guided(cond)
    flat = null.values() if isinstance(cond, dict) else [null[0], *null[1]]
    assert [tuple(value.shape) for value in flat][:2] == [(1, 3), (1, 2)]
    assert not any(bool(value.any()) for value in flat)


@pytest.mark.parametrize("names", [("Z.goal", "Z.label", "Z.seen"), ("goal", "label", "seen")])
def test_a_file_holds_a_row_of_each_member(tmp_path, names):
    cond = {"goal": GOAL, "label": LABELS, "seen": MASK.bool()}
    values = (np.full((1, 3), 0.25), np.array([2]), np.array([[True, False]]))
    np.savez(tmp_path / "null.npz", **dict(zip(names, values, strict=True)))
    null = guided(cond, str(tmp_path / "null.npz"))
    assert torch.equal(null["goal"], torch.full((1, 3), 0.25)) and null["goal"].dtype == X.dtype
    assert null["label"].tolist() == [2] and null["label"].dtype == torch.int64
    assert null["seen"].tolist() == [[True, False]] and list(null) == list(cond)


def test_members_of_a_tuple_are_numbered(tmp_path):
    np.savez(tmp_path / "null.npz", **{"Z.0": np.zeros((1, 3)), "Z.1": np.array([1])})
    null = guided((GOAL, LABELS), str(tmp_path / "null.npz"))
    assert isinstance(null, tuple) and null[1].tolist() == [1] and not null[0].any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"goal": np.zeros((1, 3))}, r"expected Z\.label in .*null.npz, got \['goal'\]"),
        ({"Z": np.zeros((1, 3))}, r"expected Z\.goal, Z\.label in .*null.npz, got \['Z'\]"),
        (
            {"goal": np.zeros((1, 4)), "label": np.array([1])},
            r"expected Z\.goal in .*null.npz like one condition, \(1, 3\), got \(1, 4\)",
        ),
        (
            {"goal": np.zeros((1, 3)), "label": np.array([1.5])},
            r"expected Z\.label in .*like one condition, integers \(1,\), got \(1,\)",
        ),
    ],
)
def test_a_file_that_lacks_a_member_is_refused_by_its_name(tmp_path, values, message):
    np.savez(tmp_path / "null.npz", **values)
    with pytest.raises(ValueError, match=message):
        guided({"goal": GOAL, "label": LABELS}, str(tmp_path / "null.npz"))


@pytest.mark.parametrize("member", [LABELS, MASK > 0])
def test_zeros_of_labels_and_masks_are_refused_by_what_can_be_followed(member):
    with pytest.raises(ValueError, match=r"no zero of Z\.label; name a file .*Z\.goal, Z\.label"):
        guided({"goal": GOAL, "label": member})


def test_guidance_without_a_condition_is_refused():
    with pytest.raises(ValueError, match="expected data with a condition for dmd.guidance_scale"):
        guided(None)


# ---- Before any training -------------------------------------------------------------------------


def plan(teacher: nn.Module, cond, **options) -> None:
    check_plan(setup_of(config(**options), teacher, X, cond))


def test_a_null_condition_that_hides_everything_is_named():
    plan(Members(), {"seen": MASK}, guided=False)
    with pytest.raises(ValueError, match=r"teacher\.null_cond=zeros, \{seen: \(1, 2\)\}: .*NaN"):
        plan(Members(), {"seen": MASK})


def test_a_null_label_that_the_teacher_does_not_know_is_named(tmp_path):
    np.savez(tmp_path / "null.npz", label=np.array([3]))
    null = str(tmp_path / "null.npz")
    plan(Members(labels=4), {"label": LABELS}, null=null)
    with pytest.raises(
        ValueError, match=r"teacher\.null_cond=.*npz.*index out of range.*\(Z\.label 3\)"
    ):
        plan(Members(labels=3), {"label": LABELS}, null=null)


@pytest.mark.parametrize("bad", [3, -1])
def test_a_label_of_the_data_that_the_teacher_does_not_know_is_named(bad):
    labels = LABELS.clone()
    labels[7] = bad
    with pytest.raises(ValueError, match=rf"index out of range.*\(Z\.label .*{bad}.*\)"):
        plan(Members(), {"label": labels}, guided=False)


def test_a_mask_of_the_data_that_hides_everything_is_named():
    seen = MASK.bool()
    seen[7] = False
    with pytest.raises(ValueError, match="from the teacher, got NaN or infinity at .* in row 7"):
        plan(Members(), {"seen": seen}, guided=False)


def test_a_null_condition_that_is_not_asked_is_not_checked():
    cfg = config()
    dmd = cfg.dmd.model_copy(update={"guidance_scale": 1.0})
    cfg = cfg.model_copy(update={"dmd": dmd})
    check_plan(setup_of(cfg, Members(), X, {"seen": MASK}))


def test_a_time_at_which_the_teacher_answers_no_number_is_named():
    late = Members(broken=lambda x, t, parts: t > 0.9)
    with pytest.raises(ValueError, match=r"from the teacher, got NaN .* t = (1|0\.9\d*) in rows 0"):
        plan(late, {"goal": GOAL}, guided=False)


# ---- While it is asked ---------------------------------------------------------------------------


def test_pairs_name_the_teacher_the_time_the_row_and_the_label(tmp_path):
    task = SampleTask("points", X.repeat(8, 1), {"label": torch.arange(8 * ROWS) % 7}, seed=0)
    labels = task.train.Z["label"]
    # Checks before a run ask of the first two rows, and of the least and the greatest label.
    bad = next(label for label in range(1, 6) if label not in labels[:2])
    teacher = Members(7, broken=lambda x, t, parts: (parts["label"] == bad) & (t < 0.7))
    rows = (labels == bad).nonzero().flatten().tolist()
    message = (
        r"teacher pairs: expected finite numbers from the teacher, got NaN or infinity at "
        rf"t = 0\.\d+ in rows ([\d, ]+) \(Z\.label {bad}(, {bad})*\) of the training data"
    )
    with pytest.raises(ValueError, match=message) as caught:
        distill(toy_config(tmp_path / "run"), teacher=teacher, task=task)
    named = re.search(message, str(caught.value))
    assert named is not None and set(map(int, named[1].split(", "))) <= set(rows)


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_samplers_of_scores_name_the_network_the_time_and_the_row(who):
    data = SampleData(X, {"label": LABELS})
    network = Members(broken=lambda x, t, parts: (parts["label"] == 2) & (t < 0.5)).eval()
    sampler = teacher_sampler(network, data, 4)
    if who == "student":
        sampler = student_sampler(network, data, [1.0, 0.25, 0.0])
    message = rf"from the {who}, got NaN or infinity at t = 0\.25 in rows 2, 5, .*\(Z\.label 2, 2"
    with pytest.raises(ValueError, match=message):
        sampler(data.Z, torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(3)))


def test_a_students_label_out_of_range_is_one_line_that_names_it():
    student = Student(
        Members(),
        t_list=[1.0, 0.0],
        steps=[1],
        sample_type="ode",
        pred_type="flow",
        horizon=(2,),
        cond_horizon=None,
    )
    assert student.sample({"label": LABELS}).shape == (ROWS, 2)
    with pytest.raises(
        ValueError, match=r"labels that the network knows, got Z\.label from 0 to 3"
    ):
        student.sample({"label": torch.tensor([0, 3])})


def test_a_student_that_is_as_its_teacher_was_leaves_the_blame_to_it():
    data = SampleData(X, {"label": LABELS})
    broken = Members(broken=lambda x, t, parts: parts["label"] == 2).eval()
    noise = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(3))
    for source, who in ((broken, r"the teacher \(called"), (Members().eval(), "the student")):
        sampler = student_sampler(broken, data, [1.0, 0.0], source=source)
        with pytest.raises(ValueError, match=f"finite numbers from {who}"):
            sampler(data.Z, noise)


@pytest.mark.parametrize("method", ["dmd2", "consistency"])
def test_a_skipped_update_names_the_network_the_time_the_row_and_the_label(
    tmp_path, capsys, method
):
    """The student's loss isn't finite; that is the teacher's doing. No validation row has the
    label."""
    labels = 6 * (torch.arange(8 * ROWS) % 2)
    task = SampleTask("points", X.repeat(8, 1), {"label": labels}, seed=0)
    labels[task.rows["train"][10:]] = 3
    labels[task.rows["train"][-1]] = 6
    task = SampleTask("points", X.repeat(8, 1), {"label": labels}, seed=0)
    teacher = Members(7, broken=lambda x, t, parts: (parts["label"] == 3) & (t < 0.9))
    values = toy_config(tmp_path / "run").model_dump() | {"method": method, "dmd": {}}
    values["train"] |= {"kd_steps": 0, "steps": 4, "most_skipped": 3}
    with pytest.raises(FloatingPointError, match="the teacher, got NaN") as caught:
        distill(DistillConfig.model_validate(values), teacher=teacher, task=task)
    said = capsys.readouterr().err
    for text in (said, str(caught.value)):
        assert "expected finite numbers from the teacher, got NaN or infinity at t = 0." in text
        assert "(Z.label 3" in text and "of the training data" in text
