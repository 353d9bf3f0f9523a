"""Draw samples from an exported student.

    python recipes/sample.py runs/ring/student z=conditions.safetensors [key=value ...]

Keys: num_samples=16, steps (network calls; the student's most), seed=0, out=samples.safetensors. `z` is a .safetensors
or .npz file with `Z` (B, T_z, d_z) in original units; the output holds `X` (B, num_samples, T_x, d_x) and `Z`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fastgen import load_student
from fastgen.checkpoint import save_tensors
from fastgen.cli import user_errors
from fastgen.data.trajectories import load_conditions

DEFAULTS = {"z": None, "num_samples": 16, "steps": None, "seed": 0, "out": "samples.safetensors"}


def main() -> None:
    with user_errors():
        if len(sys.argv) < 2 or "--help" in sys.argv:
            print(__doc__)
            raise SystemExit(0 if "--help" in sys.argv else 2)
        given = {key: value for key, _, value in (argument.partition("=") for argument in sys.argv[2:])}
        if unknown := given.keys() - DEFAULTS.keys():
            raise ValueError(f"unknown option {sorted(unknown)[0]!r}, expected one of: {', '.join(DEFAULTS)}")
        for key in given.keys() & {"num_samples", "steps", "seed"}:
            if not given[key].isdecimal():
                raise ValueError(f"expected {key} as a whole number, got {given[key]!r}")
        options = {**DEFAULTS, **{k: v if k in ("z", "out") else int(v) for k, v in given.items()}}
        if options["z"] is None:
            raise ValueError("expected z=FILE with the conditions Z (B, T_z, d_z), got none")
        student = load_student(Path(sys.argv[1]))
        z = load_conditions(options["z"])
        generator = torch.Generator().manual_seed(options["seed"])
        x = student.sample(z, num_samples=options["num_samples"], steps=options["steps"], generator=generator)
        save_tensors(Path(options["out"]), {"X": x, "Z": z})
        calls = options["steps"] or max(student.steps)
        print(f"{options['out']}: X {tuple(x.shape)} for Z {tuple(z.shape)}, {calls} network calls")


if __name__ == "__main__":
    main()
