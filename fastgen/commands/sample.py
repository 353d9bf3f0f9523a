"""Draw samples from an exported student.

    fastgen sample runs/weave/student z=conditions.safetensors [key=value ...]

In a checkout also `python recipes/sample.py runs/weave/student ...`.

Keys, with their defaults:

    z             file, .safetensors or .npz, that holds conditions as Z, in original units,
                  (B, T_z, d_z) for trajectories, with masks as in data to train on; none for a
                  student without a condition
    observations  in place of z for a student with an encoder: raw observations (B, T_z, ...), by
                  column, in .safetensors or .npz; or pictures, the T_z frames of one row, as
                  a.png,b.png; or both, as state.npz,a.png,b.png
    encoder       package.module:callable that builds its encoder, beside observations
    num_samples   16 for each condition
    steps         network calls; the most that the student is trained for
    seed          0
    out           samples.safetensors, which will hold X, and the conditions Z; .npz the same, .npy
                  and .csv X alone
    overwrite     false; true writes over a file that this recipe didn't write, or can't tell (.npy,
                  .csv)
    factory       package.module:callable that builds a network of your own
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .._core.carried import carried_like
from .._core.conditions import cond_text
from .._core.masks import MASKS, cond_without_masks, masks_of
from ..config.base import MOST_SEED
from ..data.files import load_conditions
from ..data.observations import load_observations
from ..data.sample_files import check_sample_file, write_samples
from ..export.encoders import without_encoder
from ..export.student import Student
from ..jobs.command_line import (
    column_names,
    parse_path_and_options,
    user_errors,
    whole_number,
    yes_or_no,
)
from ..jobs.sources import load_run_student

__all__ = ["main", "sample"]

_OPTIONS = (
    "z",
    "observations",
    "encoder",
    "num_samples",
    "steps",
    "seed",
    "out",
    "overwrite",
    "factory",
)
_DEFAULTS = {
    "num_samples": "16",
    "seed": "0",
    "out": "samples.safetensors",
    "overwrite": "false",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw samples as the arguments ask; None means ``sys.argv[1:]``."""
    with user_errors():
        folder, options = parse_path_and_options(__doc__, _OPTIONS, arguments)
        sample(Path(folder), _DEFAULTS | options)


def sample(folder: Path, options: dict[str, str]) -> None:
    """Draw samples as the options ask, and save them.

    Raises:
        ValueError: an option that can't be used, or a folder without an export.
    """
    num_samples = whole_number(options, "num_samples")
    seed = whole_number(options, "seed", most=MOST_SEED)
    steps = whole_number(options, "steps") if "steps" in options else None
    overwrite = yes_or_no(options, "overwrite")
    _check_observations(options)
    observed = column_names(options, "observations") or []
    inputs = [*observed, *([options["z"]] if "z" in options else [])]
    out = check_sample_file(options["out"], inputs=inputs, overwrite=overwrite)
    student = load_run_student(folder, options.get("factory"), options.get("encoder"))
    generator = torch.Generator().manual_seed(seed)
    how = {"num_samples": num_samples, "steps": steps, "generator": generator}
    if student.encoder is not None:
        z = student.encoder.encode(load_observations(observed, student.encoder.columns))
        student = without_encoder(student)
    else:
        z = _conditions(student, options.get("z"))
    x = student.sample(z, **how)
    Z, *masks = masks_of(z)
    tensors = {"X": x[0]} if z is None else {"X": x, "Z": Z}
    tensors |= {name: mask for name, mask in zip(MASKS, masks, strict=True) if mask is not None}
    write_samples(out, tensors)
    calls = max(student.steps) if steps is None else steps
    shape = tuple(tensors["X"].shape)
    print(f"{options['out']}: X {shape} for Z {cond_text(Z)}, {calls} network calls")


def _check_observations(options: dict[str, str]) -> None:
    """ValueError unless raw observations come with their encoder, and without Z."""
    if ("observations" in options) != ("encoder" in options):
        given, missing = ("observations", "encoder")
        if "encoder" in options:
            given, missing = missing, given
        raise ValueError(f"expected {missing}=... beside {given}, got none")
    if "observations" in options and "z" in options:
        raise ValueError("expected z or observations, from which the encoder makes z, got both")


def _conditions(student: Student, path: str | None) -> Any:
    """Z of the file at `path`, with the masks in it; None for a student without a condition.

    Raises:
        ValueError: a student with a condition and no file, or the other way round.
    """
    condition = (student.config.get("description") or {}).get("condition")
    if path is None:
        if student.cond_horizon is None and condition in (None, "none"):
            return None
        wanted = condition or "(B, T_z, d_z)"
        raise ValueError(f"expected z=FILE with the conditions Z {wanted}, got none")
    if condition == "none":
        raise ValueError(f"expected no z for a student without a condition, got {path}")
    z = load_conditions(path, tokens=student.horizon[0])
    Z = cond_without_masks(z)
    # The conditions of trajectories are real numbers, however a file holds them.
    whole = student.cond_horizon is not None and not Z.is_floating_point()
    return carried_like(Z.double(), z) if whole else z
