"""Statistics and teachers as other libraries save them, with damaged files, each read by a child
process; what may come of it is as in `hostile_sets`.

    python hostile_saved.py FOLDER NUMBER [NAME]      NUMBER mutations of each, in FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgen.data.formats.limits import read_limits
from fastgen.teachers.saved import read_saved
from support.hostile_sets import run
from support.saved import DIT, STABLE, UNET, network_of, save_pipeline

DATA = Path(__file__).parents[1] / "data"
STATE = "observation.state"


def limits(kind: str | None) -> Callable[[Path], object]:
    """What is done to actions and states, and the numbers for it."""

    def load(path: Path) -> object:
        found = read_limits(path)
        return [found.affine([name], kind) for name in ("action", STATE)]

    return load


def teacher(path: Path) -> object:
    """The weights of the network in a folder, and what the folder says of it."""
    found = read_saved(path)
    if found is None:
        raise ValueError("no folder of another library")
    return {**found.network.state_dict(), "declared": repr(found.declaration)}


def pipeline(name: str, work: Path) -> Path:
    """A small pipeline, saved by diffusers."""
    import diffusers

    options = UNET if name == "UNet2DModel" else DIT
    network = network_of(diffusers, name, **options)
    return save_pipeline(work, network, diffusers.DDIMScheduler(**STABLE))


# What is saved -> the folder, given one to work in; the loader; the files that are harmed.
KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any], str]] = {
    "stats": (lambda _: DATA / "sets" / "lerobot3", limits("min_max"), "stats.json"),
    "policy limits": (lambda _: DATA / "sets" / "policy", limits(None), "policy_*"),
    "policy moments": (lambda _: DATA / "sets" / "policy_moments", limits(None), "policy_*"),
    "policy": (lambda _: DATA / "policies" / "drive" / "pretrained_model", teacher, "*"),
    "flow policy": (lambda _: DATA / "policies" / "flow" / "pretrained_model", teacher, "*"),
    "unet": (lambda work: pipeline("UNet2DModel", work / "unet"), teacher, "*"),
    "dit": (lambda work: pipeline("DiTTransformer2DModel", work / "dit"), teacher, "*"),
}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for kind in sys.argv[3:] or KINDS:
        build, load, pattern = KINDS[kind]
        good = build(place / "good")
        run(kind, good, load, int(sys.argv[2]), place / "harmed", pattern, values=True)
