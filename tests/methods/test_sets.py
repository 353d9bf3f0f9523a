"""Sets of one condition: which rows are drawn, what the student is trained on, and who is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen._core.seeds import generator_for
from fastgen.config import DistillConfig, DMDConfig
from fastgen.methods.kd import pair_rows
from fastgen.methods.matching import DistributionMatching
from fastgen.methods.sets import ConditionSets, check_sets, condition_numbers, set_term
from fastgen.set_losses import set_loss
from support.pipeline import COND, X0, build
from support.runs import train, weights
from support.toy import plug_pulled, toy_config
from support.updates import BATCH, draws

LABELS = torch.arange(40) % 4
SAMPLES = torch.arange(40.0)[:, None]


def label_sets(rank: int = 0, world: int = 1, size: int = 3) -> ConditionSets:
    return ConditionSets(SAMPLES, LABELS, size, draws(rank, world))


def test_rows_have_one_number_if_and_only_if_they_have_one_condition():
    z = torch.tensor([[0.5, 1.0], [0.5, 1.0 + 1e-6], [0.5, 1.0], [2.0, 1.0]])
    label = torch.tensor([3, 3, 7, 3])
    assert condition_numbers(z, 4).tolist() == [0, 1, 0, 2]
    assert len(condition_numbers({"z": z, "label": label}, 4).unique()) == 4
    assert len(condition_numbers((z[:, :1], label), 4).unique()) == 3
    assert condition_numbers(None, 4).tolist() == [0, 0, 0, 0]


def test_a_group_has_different_rows_of_one_condition_and_all_rows_take_part():
    sets = label_sets()
    seen = []
    for step in range(60):
        rows = sets.rows(step)
        assert len(rows) == BATCH and torch.equal(rows, label_sets().rows(step))
        for group in rows.reshape(-1, 3):
            assert len(LABELS[group].unique()) == 1 and len(group.unique()) == 3
        seen.append(rows)
    counts = torch.cat(seen).bincount(minlength=40)
    assert int(counts.min()) > 0 and float(counts.max() / counts.float().mean()) < 2


def test_processes_take_their_shares_of_one_batch():
    x, labels = label_sets().batch(5)
    parts = [label_sets(rank, 2).batch(5) for rank in (0, 1)]
    assert torch.equal(torch.cat([part[0] for part in parts]), x)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_a_target_whose_conditions_are_its_rows_own_is_refused():
    with pytest.raises(ValueError, match=r"got that for 0; .*kd_noises_per_condition=3"):
        ConditionSets(SAMPLES, SAMPLES, 3, draws(0, 1))
    # A few conditions of one row are left out.
    odd = LABELS.clone()
    odd[0] = 9
    sets = ConditionSets(SAMPLES, odd, 3, draws(0, 1))
    assert 0 not in torch.cat([sets.rows(step) for step in range(40)])


@pytest.mark.parametrize(
    ("target", "each", "cond", "refused"),
    [
        ("data", 1, LABELS, False),
        ("data", 1, SAMPLES, True),
        ("data", 4, SAMPLES, True),
        ("teacher", 1, SAMPLES, True),
        ("teacher", 4, SAMPLES, False),
        ("teacher", 1, None, False),
    ],
)
def test_it_is_refused_before_pairs_are_made(target: str, each: int, cond: Any, refused: bool):
    cfg = DistillConfig.model_validate(
        {
            "dmd": {"set_weight": 1.0, "set_target": target},
            "train": {"kd_pairs": 40, "kd_noises_per_condition": each},
        }
    )
    networks: Any = SimpleNamespace(cfg=cfg, x0=SAMPLES, cond=cond)
    if not refused:
        check_sets(networks)
        return
    with pytest.raises(ValueError, match="dmd.set_samples=4 rows of one condition"):
        check_sets(networks)
    together = cfg.dmd.model_copy(update={"set_conditional": False})
    networks.cfg = cfg.model_copy(update={"dmd": together})
    check_sets(networks)
    networks.cond = LABELS
    with pytest.raises(ValueError, match="condition of real numbers with dmd.set_conditional"):
        check_sets(networks)


@pytest.mark.parametrize("in_order", [True, False])
def test_pairs_of_one_condition_follow_one_another(in_order: bool):
    rows = pair_rows(22, 7, 0, in_order, each=4)
    assert len(rows) == 22
    assert torch.equal(rows, pair_rows(6, 7, 0, in_order).repeat_interleave(4)[:22])
    assert torch.equal(pair_rows(22, 7, 0, in_order, each=1), pair_rows(22, 7, 0, in_order))


@pytest.mark.parametrize("kind", ["energy", "chamfer", "drift"])
def test_the_term_compares_new_samples_of_the_student_group_by_group(kind: str):
    pipeline = build(set_weight=1.0, set_loss=kind, set_samples=3)
    cond = COND[::3].repeat_interleave(3, 0)
    term = set_term(pipeline.rollouts, X0, cond, generator=generator_for(1))
    generator = generator_for(1)
    noise = torch.randn(X0.shape, generator=generator, dtype=X0.dtype)
    made = pipeline.generate(None, noise, cond, generator=generator).x0
    expected = set_loss(made.reshape(2, 3, 3), X0.reshape(2, 3, 3), kind)
    torch.testing.assert_close(term, expected, rtol=1e-12, atol=0)
    term.backward()
    assert any(p.grad is not None and p.grad.any() for p in pipeline.student.parameters())
    assert all(p.grad is None for p in pipeline.teacher.parameters())


def test_beside_their_conditions_samples_of_the_wrong_ones_are_told():
    """A student of the right law that gives each condition another one's sample."""
    cond = torch.randn(64, 1, 2, generator=generator_for(0), dtype=torch.float64)
    near = 0.1 * torch.randn(2, 64, 1, 2, generator=generator_for(1), dtype=torch.float64)

    def loss(made: Tensor, conditional: bool, kind: Any) -> float:
        config = DMDConfig(set_samples=16, set_loss=kind, set_conditional=conditional)
        rollouts: Any = SimpleNamespace(
            config=config,
            draws=SimpleNamespace(normal_like=lambda x, generator: x),
            generate=lambda start, noise, cond, generator: SimpleNamespace(x0=made),
        )
        return float(set_term(rollouts, cond + near[0], cond))

    right = cond + near[1]
    within = right.reshape(4, 16, 1, 2).roll(1, 1).reshape(64, 1, 2)
    for kind in ("energy", "chamfer", "drift"):
        assert loss(within, True, kind) == pytest.approx(loss(right, True, kind), rel=1e-9)
        assert loss(within, False, kind) > loss(right, False, kind) + 0.02


def test_micro_batches_average_to_the_term_of_the_whole():
    pipeline = build(set_weight=1.0, set_samples=3)
    cond = COND[::3].repeat_interleave(3, 0)

    def of(rollouts, rows: slice) -> Tensor:
        return set_term(rollouts, X0[rows], cond[rows], generator=generator_for(1))

    whole = of(pipeline.rollouts, slice(None))
    parts = [pipeline.micro_batch(j, 2).rollouts for j in (0, 1)]
    halves = torch.stack([of(part, slice(3 * j, 3 * j + 3)) for j, part in enumerate(parts)])
    torch.testing.assert_close(halves.mean(), whole, rtol=1e-12, atol=0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="set_samples=4 divides, got 6"):
        set_term(build(set_samples=4).rollouts, X0, COND)
    with pytest.raises(ValueError, match="backward_simulation=true with set_weight > 0"):
        DMDConfig(student_steps=2, set_weight=1.0, backward_simulation=False)
    with pytest.raises(ValueError, match="set_temperatures > 0"):
        DMDConfig(set_temperatures=())


def config(run_dir, **changes) -> DistillConfig:
    values = toy_config(run_dir, kd_steps=3, steps=4, kd_noises_per_condition=4).model_dump()
    dmd = {"vsd_weight": 0.0, "set_weight": 1.0, "set_loss": "drift", "kd_weight": 0.1}
    return DistillConfig.model_validate(values | {"dmd": dmd} | changes)


def test_a_run_on_sets_of_the_teachers_pairs_resumes_bit_for_bit(tmp_path):
    train(config(tmp_path / "whole"))
    with plug_pulled(DistributionMatching, 3):
        train(config(tmp_path / "stopped"))
    train(config(tmp_path / "stopped", resume=True))
    whole = weights(tmp_path / "whole")
    resumed = weights(tmp_path / "stopped")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
