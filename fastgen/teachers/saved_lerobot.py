"""Folders of LeRobot: the `pretrained_model/` of a DiffusionPolicy that sees states alone.

    config.json          the policy's sizes, features, and its noise schedule
    model.safetensors    diffusion.unet.*
    policy_preprocessor.json and its tensors (lerobot 0.4), or normalize_* beside the weights (0.3)

The network is `TrajectoryUnet` (fastgen/models/conv_unet.py), whose tensors have the same names, so
lerobot is not needed. It is called with what the policy's own normalisation makes of actions and
observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .._core.checks import is_count
from .._core.json_files import read_json
from .._core.messages import brief, listed
from ..models.conv_unet import TrajectoryUnet
from .saved_teacher import CONFIG, SavedTeacher, fill_from, tensors_of
from .schedulers import read_scheduler

__all__ = ["blank_lerobot", "read_lerobot"]

_KIND = "diffusion"
_AGAIN = "copy the folder anew"
_STEM = "model"
_PREFIX = "diffusion.unet."
_STATE = "observation.state"
_PLACE = "observation.environment_state"
_ACTION = "action"
_PREPROCESSOR = "policy_preprocessor.json"
# What lerobot's DiffusionConfig takes where its file is silent.
_SIZES: dict[str, Any] = {
    "n_obs_steps": 2,
    "horizon": 16,
    "down_dims": [512, 1024, 2048],
    "kernel_size": 5,
    "n_groups": 8,
    "diffusion_step_embed_dim": 128,
    "use_film_scale_modulation": True,
}


def read_lerobot(folder: Path) -> SavedTeacher:
    """The network of a policy, with what its schedule says.

    Raises:
        ValueError: see `fastgen.teachers.saved.read_saved`.
    """
    config = _Policy(folder)
    tensors = tensors_of(folder, _STEM, "policy.save_pretrained(folder)")
    config.check_within(tensors)
    network = config.network()
    inside = {
        name.removeprefix(_PREFIX): value
        for name, value in tensors.items()
        if name.startswith(_PREFIX)
    }
    network = fill_from(network, inside, folder)
    statistics = folder / _PREPROCESSOR
    return SavedTeacher(
        network,
        keywords=None,
        declaration=read_scheduler(config.file),
        statistics=statistics if statistics.is_file() else None,
    )


def blank_lerobot(folder: Path) -> nn.Module:
    """The network of `read_lerobot` with any numbers.

    Raises:
        ValueError: as there, but for weights and schedule.
    """
    return _Policy(folder).network()


class _Policy:
    """The config of a policy, each value checked when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / CONFIG
        self.values = {**_SIZES, **read_json(self.file, only_finite=False)}
        if self.values.get("type", _KIND) != _KIND:
            self._refuse(
                "type",
                f"type {_KIND} (DiffusionPolicy)",
                "give teacher.factory, which returns a network of (x, t, cond)",
            )

    def network(self) -> nn.Module:
        """The network with random numbers."""
        action = self._width("output_features", _ACTION)
        seen = self._observed()
        arguments = {
            "in_dim": action,
            "cond_dim": self._count("n_obs_steps") * seen,
            "down_dims": self._stages(),
            "kernel_size": self._count("kernel_size"),
            "num_groups": self._count("n_groups"),
            "time_dim": self._count("diffusion_step_embed_dim"),
            "scales": bool(self.values["use_film_scale_modulation"]),
        }
        try:
            # The caller's generator stays as it is.
            with torch.random.fork_rng(devices=[]):
                return TrajectoryUnet(**arguments).eval()
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error

    def check_within(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse sizes beyond those of the tensors, before memory is allocated."""
        most = max((size for value in tensors.values() for size in value.shape), default=0)
        for key in ("diffusion_step_embed_dim", "kernel_size", "n_groups"):
            if self._count(key) > most:
                self._refuse(key, f"{key} within 1..{most}, which the tensors allow", _AGAIN)
        stages = self._stages()
        if len(stages) > len(tensors) or max(stages, default=0) > most:
            self._refuse(
                "down_dims", f"down_dims within 1..{most}, which the tensors allow", _AGAIN
            )
        sizes = (
            self._width("output_features", _ACTION),
            self._count("n_obs_steps") * self._observed(),
        )
        if max(sizes) > most:
            self._refuse("input_features", "features that the tensors allow", _AGAIN)

    def _observed(self) -> int:
        """The numbers of one observation: the state's and, if it sees one, the place's."""
        features = self._features("input_features")
        others = sorted(set(features) - {_STATE, _PLACE})
        if others:
            self._refuse(
                "input_features",
                f"a policy that sees {_STATE} and {_PLACE} alone",
                "give teacher.factory, whose network takes the images' features as Z",
                f"{listed(others)} beside them",
            )
        seen = self._width("input_features", _STATE)
        return seen + self._width("input_features", _PLACE) if _PLACE in features else seen

    def _features(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key)
        if not isinstance(value, dict):
            self._refuse(key, f"{key} by name", _AGAIN)
        return value

    def _width(self, key: str, name: str) -> int:
        """The numbers of one feature."""
        feature = self._features(key).get(name)
        shape = feature.get("shape") if isinstance(feature, dict) else None
        if not isinstance(shape, list) or len(shape) != 1 or not is_count(shape[0]):
            self._refuse(key, f"{name} in {key} with a shape of one number", _AGAIN)
        return shape[0]

    def _count(self, key: str) -> int:
        value = self.values[key]
        if not is_count(value):
            self._refuse(key, f"{key} as a whole number > 0", _AGAIN)
        return value

    def _stages(self) -> list[int]:
        value = self.values["down_dims"]
        if not isinstance(value, list) or not all(is_count(dim) for dim in value):
            self._refuse("down_dims", "down_dims as whole numbers > 0", _AGAIN)
        return value

    def _refuse(self, key: str, expected: str, remedy: str, got: str | None = None) -> NoReturn:
        found = f"{key}={brief(self.values.get(key))}" if got is None else got
        raise ValueError(f"{self.file}: expected {expected}, got {found}; {remedy}")
