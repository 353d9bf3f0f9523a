"""A student as a pretrained policy of LeRobot, for the plugin in `recipes/plugins`.

    config.json                  of the policy: features, history, actions that are executed
    policy_preprocessor.json     what LeRobot does before it: rename, add rows, move
    policy_postprocessor.json    and behind it
    student/                     the student's folder, as it is

Nothing of LeRobot is needed to write it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .._core.checks import is_count, plain_int
from .._core.files import new_folder
from .._core.json_files import write_json
from .card import CARD
from .folders import STUDENT_FILE, load_student
from .schema import EXPORT_CONFIG

__all__ = ["export_lerobot"]

_CONFIG = "config.json"
_PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
_STUDENT = "student"
_MARK = b'"type": "fastgen"'
_HEAD_BYTES = 4096


def export_lerobot(
    student: str | Path,
    path: str | Path,
    *,
    steps: int | None = None,
    execute: int | None = None,
    lead: int = 0,
) -> dict[str, Any]:
    """Write a policy; returns its config.

    Args:
        student: its folder.
        path: of the policy: new, empty, or an earlier one, which is replaced whole.
        steps: network calls, among the student's; None: the most of them.
        execute: actions of a chunk that are executed before the next one; None: all that come.
        lead: place in a chunk of the action of the newest observation: 0, or T_z - 1 for a student
            of `data.actions_from: first_observation`.

    Raises:
        ValueError: a student whose samples are no trajectories, or whose condition is no
            observation (T_z, d_z); `execute` or `lead` beyond a chunk.
        OSError: the folder can't be written.
    """
    loaded = load_student(student)
    if len(loaded.horizon) != 2 or loaded.cond_horizon is None:
        raise ValueError(
            "expected a student of trajectories (T_x, d_x) with observations (T_z, d_z) for a "
            f"policy, got horizon {loaded.horizon} and cond_horizon {loaded.cond_horizon}"
        )
    if loaded.config.get("encoder") is not None:
        raise ValueError(
            "expected a student that takes observations, got one that takes what an encoder makes "
            "of them; the plugin doesn't load encoders"
        )
    loaded.rungs(plain_int(steps))  # refuses what isn't on offer
    (chunk, d_x), (observations, d_z) = loaded.horizon, loaded.cond_horizon
    if type(lead) is not int or not 0 <= lead < chunk:
        raise ValueError(f"expected lead from 0 to {chunk - 1}, within a chunk, got {lead!r}")
    coming = chunk - lead
    execute = coming if execute is None else execute
    if not is_count(execute) or execute > coming:
        raise ValueError(
            f"expected execute from 1 to {coming}, the actions that come, got {execute!r}"
        )
    config = {
        "type": "fastgen",
        "n_obs_steps": observations,
        "input_features": {"observation.state": {"type": "STATE", "shape": [d_z]}},
        "output_features": {"action": {"type": "ACTION", "shape": [d_x]}},
        "device": "cpu",
        "chunk_size": chunk,
        "n_action_steps": execute,
        "lead": lead,
        "steps": steps,
        "student": _STUDENT,
    }
    with new_folder(path, (_CONFIG, *_PROCESSORS, _STUDENT), _is_policy) as partial:
        (partial / _STUDENT).mkdir()
        for name in (EXPORT_CONFIG, STUDENT_FILE, CARD):
            shutil.copyfile(Path(student) / name, partial / _STUDENT / name)
        write_json(partial / _CONFIG, config)
        for file, steps_of in zip(_PROCESSORS, (_BEFORE, _BEHIND), strict=True):
            write_json(partial / file, {"name": file.removesuffix(".json"), "steps": steps_of})
    return config


_TO_CPU = {
    "registry_name": "device_processor",
    "config": {"device": "cpu", "float_dtype": None},
}
_BEFORE = [
    {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
    {"registry_name": "to_batch_processor", "config": {}},
    _TO_CPU,
]
_BEHIND = [_TO_CPU]


def _is_policy(folder: Path) -> bool:
    """Whether an earlier one stands in `folder`: its config says so."""
    try:
        with open(folder / _CONFIG, "rb") as file:
            return _MARK in file.read(_HEAD_BYTES)
    except OSError:
        return False
