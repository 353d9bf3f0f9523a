"""Teacher pairs of a run: states of the teacher's ODE at the student's rungs, kept on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .._core.conditions import cond_to, take_rows
from .._core.processes import together
from .._core.seeds import draws_apart, generator_for
from .._core.tensor_files import load_tensors, save_tensors
from ..methods.kd import pair_rows, teacher_pairs
from ..networks import Cond, network_device
from ..records.log import progress_bar
from ..records.origin import run_stamp
from ..teachers.answer import Watched
from ..training.processes import Processes
from .setup import Setup

__all__ = ["PAIRS", "evaluations_of_a_pair", "pairs_of_run"]

# Rows without a number that the teacher is asked again with.
_MOST_BAD = 64
PAIRS = "pairs.safetensors"
# What two of them ask of the teacher, until it is taken.
_TWO_PAIRS = "two pairs"
_REMAKE = "delete the file, and they are made again"


def pairs_of_run(
    setup: Setup, run_dir: Path, processes: Processes, *, chunk: int
) -> tuple[Tensor, Cond]:
    """`train.kd_pairs` pairs, one noise each, with the conditions of the data by
    :func:`fastgen.methods.kd.pair_rows`.

    Made by all processes together and kept in the run folder, from which a resumed run reads them.

    Args:
        chunk: rows that the teacher is given at once, by all processes together.

    Returns:
        `(states, cond)`: (N, K + 1, ...) on the CPU, and N rows of the condition.

    Raises:
        ValueError: the file in the run folder holds other pairs, or those of another run; the
            teacher's answer is not finite at some time for some row.
    """
    n = setup.cfg.train.kd_pairs
    cond = setup.with_prefixes(take_rows(setup.cond, _rows(setup)), PAIRS)
    path = run_dir / PAIRS
    owner = run_stamp(run_dir)
    if path.exists():
        states = load_tensors(path, remedy=_REMAKE, **owner).get("states")
        shape = (n, len(setup.cfg.student.t_list), *setup.x0.shape[1:])
        if states is None or states.shape != shape or not states.is_floating_point():
            raise ValueError(
                f"expected the teacher pairs of this run in {path}, got others; delete the file"
            )
        return states, cond
    parts = []
    with progress_bar("teacher pairs", n, shown=processes.is_main_process) as bar:
        for start in range(0, n, chunk):
            size = min(chunk, n - start)
            parts.append(_chunk_of_pairs(setup, processes, cond, start, size))
            bar.update(size)
            bar.set_postfix()
    states = torch.cat(parts)
    with together():
        if processes.is_main_process:
            save_tensors(path, {"states": states}, **owner)
    return states, cond


def evaluations_of_a_pair(setup: Setup) -> int:
    """Teacher evaluations of one pair, counted while two are made: `train.kd_teacher_calls`, and
    what the teacher's range of times asks for; each of them twice where it is guided.

    Raises:
        ValueError: the teacher can't be called so.
    """
    device = network_device(setup.source, setup.x0.device)
    batch = setup.batch(2)
    with setup.rows.part(_TWO_PAIRS), draws_apart(device):
        _pairs_of(setup, setup.teacher, batch.noise.to(device), cond_to(batch.cond, device))
    return setup.rows.take(_TWO_PAIRS) // 2


def _rows(setup: Setup) -> Tensor:
    """The row of the data for each pair."""
    train = setup.cfg.train
    return pair_rows(
        train.kd_pairs,
        len(setup.x0),
        setup.cfg.seed,
        setup.in_order,
        each=train.kd_noises_per_condition,
    )


def _chunk_of_pairs(
    setup: Setup, processes: Processes, cond: Cond, start: int, size: int
) -> Tensor:
    """States of `size` pairs from the row `start` on; each process makes its share of them."""
    cfg = setup.cfg
    generator = generator_for(cfg.seed, "pairs", start)
    noise = torch.randn(size, *setup.x0.shape[1:], generator=generator)
    # Equal shares, filled up at the end of the last ones only, so that the gathered rows keep their
    # order.
    share = -(-size // processes.num_processes)
    first = processes.process_index * share
    rows = torch.arange(first, first + share).clamp(max=size - 1)

    def made_by(teacher: nn.Module, rows: Tensor) -> Tensor:
        own_cond = cond_to(take_rows(cond, start + rows), processes.device)
        return _pairs_of(setup, teacher, noise[rows].to(processes.device), own_cond)

    states = processes.gather(made_by(setup.teacher, rows))[:size].cpu()
    finite = torch.isfinite(states.flatten(1)).all(1)
    if not bool(finite.all()):
        # Once more, and looked at: all processes see the same rows, so all of them end here.
        bad = (~finite).nonzero().flatten()[:_MOST_BAD]
        of_data = _rows(setup)[start + bad]
        try:
            made_by(Watched(setup.teacher, "the teacher", of_data), bad)
        except ValueError as error:
            raise ValueError(f"teacher pairs: {error} of the training data") from error
        raise ValueError(
            "teacher pairs: expected finite numbers from the teacher's ODE, got NaN or infinity "
            f"from rows {of_data.tolist()} of the training data"
        )
    return states


def _pairs_of(setup: Setup, teacher: nn.Module, noise: Tensor, cond: Cond) -> Tensor:
    """Pairs as the config of a run asks for them, one for each noise."""
    cfg = setup.cfg
    return teacher_pairs(
        teacher,
        noise,
        cond,
        cfg.student.t_list,
        calls=cfg.train.kd_teacher_calls,
        pred_type=cfg.student.pred_type,
    )
