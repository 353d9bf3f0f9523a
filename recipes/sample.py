"""Draw samples from an exported student.

    python recipes/sample.py runs/ring/student z=conditions.safetensors [key=value ...]

Keys: num_samples=16, steps (network calls; the student's most), seed=0, out=samples.safetensors,
and for a network of your own factory=package.module:callable, which builds it. `z` is a file,
.safetensors or .npz, with `Z` in original units, (B, T_z, d_z) for trajectories; the output holds
`X`, `num_samples` for each of the B conditions, and `Z`. A student that is sampled without a
condition takes no `z`; then `X` are `num_samples` of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from fastgen._core.conditions import cond_text
from fastgen._core.tensor_files import save_tensors
from fastgen.data.files import load_conditions
from fastgen.export.student import Student
from fastgen.jobs.command_line import user_errors
from fastgen.jobs.sources import load_run_student

DEFAULTS = {
    "z": None,
    "num_samples": 16,
    "steps": None,
    "seed": 0,
    "out": "samples.safetensors",
    "factory": None,
}


def main() -> None:
    with user_errors():
        if len(sys.argv) < 2 or "--help" in sys.argv:
            print(__doc__)
            raise SystemExit(0 if "--help" in sys.argv else 2)
        given = {
            key: value for key, _, value in (argument.partition("=") for argument in sys.argv[2:])
        }
        if unknown := given.keys() - DEFAULTS.keys():
            raise ValueError(
                f"unknown option {sorted(unknown)[0]!r}, expected one of: {', '.join(DEFAULTS)}"
            )
        for key in given.keys() & {"num_samples", "steps", "seed"}:
            if not given[key].isdecimal():
                raise ValueError(f"expected {key} as a whole number, got {given[key]!r}")
        options = {
            **DEFAULTS,
            **{k: v if k in ("z", "out", "factory") else int(v) for k, v in given.items()},
        }
        student = load_run_student(Path(sys.argv[1]), options["factory"])
        z = conditions(student, options["z"])
        generator = torch.Generator().manual_seed(options["seed"])
        x = student.sample(
            z, num_samples=options["num_samples"], steps=options["steps"], generator=generator
        )
        x = x[0] if z is None else x
        save_tensors(Path(options["out"]), {"X": x} | ({} if z is None else {"Z": z}))
        calls = options["steps"] or max(student.steps)
        print(f"{options['out']}: X {tuple(x.shape)} for Z {cond_text(z)}, {calls} network calls")


def conditions(student: Student, path: str | None) -> Tensor | None:
    """Z of the file at `path`; None for a student without a condition. ValueError where only one of
    them has any."""
    condition = (student.config.get("description") or {}).get("condition")
    if path is None:
        if student.cond_horizon is None and condition in (None, "none"):
            return None
        wanted = condition or "(B, T_z, d_z)"
        raise ValueError(f"expected z=FILE with the conditions Z {wanted}, got none")
    if condition == "none":
        raise ValueError(f"expected no z for a student without a condition, got {path}")
    z = load_conditions(path)
    # The conditions of trajectories are real numbers, however a file holds them.
    return z if student.cond_horizon is None else z.float()


if __name__ == "__main__":
    main()
