"""Laws of a student in a closed loop: plans, what is executed of them, and how they join."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.export import Student, load_student
from support.folders import export_, seeded
from support.networks import dense

HORIZON = 6


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Student]:
    """By `prefix_max`, of trajectories (6, 2) in tokens of two waypoints."""
    folder = tmp_path_factory.mktemp("receding")
    return {most: load_student(export_(folder / str(most), prefix_max=most)) for most in (0, 4)}


def observed(calls: int, *rows: int) -> list[Tensor]:
    return list(torch.randn(calls, *rows, 2, 2, generator=seeded(1)))


@pytest.mark.parametrize("most", [0, 4])
@pytest.mark.parametrize("rows", [(), (3,)], ids=["one", "batch"])
def test_with_all_executed_it_is_plain_sampling(students, most, rows):
    policy = students[most].policy(HORIZON, seed=5)
    scenes = observed(2 * HORIZON, *rows)
    actions = torch.stack([policy(scene) for scene in scenes], -2)
    generator = seeded(5)
    plans = [students[most].sample(scenes[i], generator=generator) for i in (0, HORIZON)]
    assert actions.shape == (*rows, 2 * HORIZON, 2)
    assert torch.equal(actions, torch.cat(plans, -2))


def test_each_plan_goes_on_from_what_is_left_of_the_last(students):
    student = students[4]
    for execute, given in ((1, 4), (2, 4), (3, 2), (4, 2), (5, 0)):
        policy = student.policy(execute)
        plans = []
        for scene in observed(3 * execute):
            action = policy(scene)
            if policy.waiting == execute - 1:
                plans.append(policy.plan)
            assert torch.equal(action, plans[-1][execute - 1 - policy.waiting])
        for before, after in zip(plans, plans[1:], strict=False):
            assert torch.equal(after[:given], before[execute : execute + given])
            assert not torch.equal(after[given : given + 1], before[execute + given :][:1])


def test_less_may_be_given_than_the_student_was_trained_with(students):
    policy = students[4].policy(2, prefix=2)
    scenes = observed(3)
    policy(scenes[0])
    before = policy.plan
    policy(scenes[1])
    policy(scenes[2])
    assert torch.equal(policy.plan[:2], before[2:4])
    assert not torch.equal(policy.plan[2:4], before[4:6])
    free = students[4].policy(2, prefix=0)
    assert [free(scene) for scene in scenes] and not torch.equal(free.plan[:2], before[2:4])


def test_after_a_reset_it_begins_as_new_and_a_seed_gives_its_actions(students):
    scenes = observed(5)

    def actions(policy) -> Tensor:
        return torch.stack([policy(scene) for scene in scenes])

    policy = students[4].policy(3, seed=7)
    first = actions(policy)
    policy.reset()
    assert policy.plan is None and policy.waiting == 0
    assert torch.equal(actions(policy), first)
    assert torch.equal(actions(students[4].policy(3, seed=7)), first)
    policy.reset(seed=8)
    other = actions(policy)
    assert not torch.equal(other, first)
    assert torch.equal(actions(students[4].policy(3, seed=8)), other)


def test_two_policies_of_one_student_know_nothing_of_each_other(students):
    scenes = observed(6)
    alone = [students[4].policy(2, seed=1)(scene) for scene in scenes[:1]]
    one, two = students[4].policy(2, seed=1), students[4].policy(3, seed=2)
    taken = []
    for scene in scenes:
        taken.append(one(scene))
        two(scene)
    again = students[4].policy(2, seed=1)
    assert torch.equal(taken[0], alone[0])
    assert all(map(torch.equal, taken, [again(scene) for scene in scenes]))


def test_arrays_give_actions_that_are_arrays(students):
    scenes = observed(4)
    tensors, arrays = (students[4].policy(2) for _ in range(2))
    for scene in scenes:
        action = arrays(scene.numpy())
        assert isinstance(action, np.ndarray)
        assert np.array_equal(action, tensors(scene).numpy())


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("expected execute as a whole number from 1 to 6, .* got 0", {"execute": 0}),
        ("expected execute .* got 7", {"execute": 7}),
        ("expected execute .* got True", {"execute": True}),
        ("expected prefix as a whole number from 0 to 4, a multiple of 2, .* got 3", {"prefix": 3}),
        ("expected prefix .* got 6", {"prefix": 6}),
        ("expected steps among those trained", {"steps": 3}),
        ("expected seed as a whole number >= 0, got -1", {"seed": -1}),
    ],
)
def test_what_a_student_does_not_offer_is_refused_before_any_plan(students, message, options):
    with pytest.raises(ValueError, match=message):
        students[4].policy(**options)


def test_other_scenes_and_samples_are_refused(students):
    policy = students[4].policy(1)
    policy(observed(1, 3)[0])
    with pytest.raises(ValueError, match="expected"):
        policy(observed(1, 2)[0])
    free = students[0].policy(1)
    free(observed(1, 3)[0])
    with pytest.raises(ValueError, match=r"as many scenes as before, .* call reset\(\) first"):
        free(observed(1, 2)[0])
    options = {"steps": [1], "sample_type": "ode", "pred_type": "flow", "cond_horizon": None}
    pixels = Student(dense(), t_list=[0.5, 0.0], horizon=(2, 4, 4), **options)
    with pytest.raises(ValueError, match="expected a student of trajectories"):
        pixels.policy()
