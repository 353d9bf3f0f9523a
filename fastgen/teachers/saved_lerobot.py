"""Folders of LeRobot: the `pretrained_model/` of a policy that sees states alone.

    config.json          the policy's type, sizes, features, and how it was trained
    model.safetensors    diffusion.unet.* or noise_predictor.*
    policy_preprocessor.json and its tensors (lerobot 0.4), or normalize_* beside the weights (0.3)

| `type`         | policy             | network                 | Z, for each observation         |
|----------------|--------------------|-------------------------|---------------------------------|
| diffusion      | DiffusionPolicy    | `TrajectoryUnet`        | state and place                 |
| multi_task_dit | MultiTaskDiTPolicy | `TrajectoryTransformer` | state, and what the policy's    |
|                |                    |                         | encoder makes of an instruction |

The networks are those of fastgen/models, whose tensors have the same names, so lerobot is not
needed. They are called with what the policy's own normalisation makes of actions and observations.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .._core.checks import is_count
from .._core.json_files import read_json
from .._core.messages import brief, listed
from ..models.conv_unet import TrajectoryUnet
from ..models.trajectory_transformer import TrajectoryTransformer
from .saved_teacher import CONFIG, SavedTeacher, built_within, fill_from, tensors_of
from .schedulers import read_scheduler

__all__ = ["blank_lerobot", "read_lerobot"]

_DIFFUSION = "diffusion"
_MULTI_TASK = "multi_task_dit"
# What makes their actions asks a vision-language model, which is built by downloading it and which
# takes at least one picture.
_OF_PICTURES = (
    *("smolvla", "pi0", "pi05", "pi0_fast", "groot", "xvla", "wall_x"),
    *("eo1", "evo1", "fastwam", "lingbot_va", "molmoact2", "vla_jepa"),
)
_AGAIN = "copy the folder anew"
_FACTORY = "give teacher.factory, which returns a network of (x, t, cond)"
_STEM = "model"
_STATE = "observation.state"
_PLACE = "observation.environment_state"
_ACTION = "action"
_PREPROCESSOR = "policy_preprocessor.json"


def read_lerobot(folder: Path) -> SavedTeacher:
    """The network of a policy, with what its config says of its training.

    Raises:
        ValueError: see `fastgen.teachers.saved.read_saved`.
    """
    policy = _policy(folder)
    tensors = tensors_of(folder, _STEM, "policy.save_pretrained(folder)")
    policy.check_within(tensors)
    inside = {
        name.removeprefix(policy.prefix): value
        for name, value in tensors.items()
        if name.startswith(policy.prefix)
    }
    network = fill_from(built_within(policy.network, inside, folder), inside, folder)
    statistics = folder / _PREPROCESSOR
    return SavedTeacher(
        network,
        keywords=None,
        declaration=policy.declaration(),
        statistics=statistics if statistics.is_file() else None,
    )


def blank_lerobot(folder: Path, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of `read_lerobot` with any numbers, no larger than these tensors.

    Raises:
        ValueError: as there, but for weights and schedule.
    """
    policy = _policy(folder)
    policy.check_within(tensors)
    return built_within(policy.network, tensors, folder)


def _policy(folder: Path) -> _Policy:
    """The policy of a folder, by its `type`."""
    values = read_json(folder / CONFIG, only_finite=False)
    # Some versions of what writes it leave `type` out; of them DiffusionPolicy is known here.
    kind = values.get("type", _DIFFUSION)
    if kind == _DIFFUSION:
        return _DiffusionPolicy(folder / CONFIG, values)
    if kind == _MULTI_TASK:
        return _MultiTaskPolicy(folder / CONFIG, values)
    why = ""
    if kind in _OF_PICTURES:
        why = (
            ", whose actions are made from what a vision-language model sees in pictures: no "
            "network of states alone is in it"
        )
    raise ValueError(
        f"{folder / CONFIG}: expected type {_DIFFUSION} (DiffusionPolicy) or {_MULTI_TASK} "
        f"(MultiTaskDiTPolicy), got type={brief(kind)}{why}; {_FACTORY}"
    )


class _Policy(abc.ABC):
    """The config of a policy, each value checked when it is asked for.

    Attributes:
        prefix: of the names of its network's tensors.
        silent: what lerobot takes where a file is silent.
    """

    prefix: str
    silent: Mapping[str, Any]

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        self.file = file
        self.values = {**self.silent, **values}

    @abc.abstractmethod
    def declaration(self) -> dict[str, Any]:
        """The arguments of `as_rectified_flow`."""

    @abc.abstractmethod
    def _build(self) -> nn.Module:
        """The network with random numbers; ValueError for sizes that make none."""

    @abc.abstractmethod
    def check_within(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse sizes beyond those of the tensors, before anything is built."""

    @abc.abstractmethod
    def seen(self) -> int:
        """The numbers of Z in one observation."""

    def in_dim(self) -> int:
        """The numbers of an action."""
        return self.width("output_features", _ACTION)

    def cond_dim(self) -> int:
        """The numbers of Z in all observations."""
        return self.count("n_obs_steps") * self.seen()

    def check_features(self, most: int) -> None:
        """Refuse actions or observations of more numbers than the tensors allow."""
        if max(self.in_dim(), self.cond_dim()) > most:
            self.refuse("input_features", "features that the tensors allow", _AGAIN)

    def network(self) -> nn.Module:
        """The network with random numbers, in eval mode."""
        try:
            # The caller's generator stays as it is.
            with torch.random.fork_rng(devices=[]):
                return self._build().eval()
        except ValueError as error:
            if str(error).startswith(str(self.file)):
                raise
            raise ValueError(f"{self.file}: {error}") from error
        # What torch says of sizes that it can't count.
        except (TypeError, OverflowError, RuntimeError) as error:
            raise ValueError(
                f"{self.file}: expected sizes of a network, got: {brief(error)}; {_AGAIN}"
            ) from error

    # ---- Values of a kind ------------------------------------------------------------------------

    def observed(self, *seen: str) -> list[str]:
        """Those of the features `seen` that the policy has; refuses any other, such as pictures."""
        features = self._features("input_features")
        others = sorted(set(features) - {*seen})
        if others:
            self.refuse(
                "input_features",
                f"a policy that sees {' and '.join(seen)} alone",
                "give teacher.factory, whose network takes the images' features as Z",
                f"{listed(others)} beside {'them' if len(seen) > 1 else 'it'}",
            )
        return [name for name in seen if name in features]

    def width(self, key: str, name: str) -> int:
        """The numbers of one feature."""
        feature = self._features(key).get(name)
        shape = feature.get("shape") if isinstance(feature, dict) else None
        if not isinstance(shape, list) or len(shape) != 1 or not is_count(shape[0]):
            self.refuse(key, f"{name} in {key} with a shape of one number", _AGAIN)
        return shape[0]

    def _features(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key)
        if not isinstance(value, dict):
            self.refuse(key, f"{key} by name", _AGAIN)
        return value

    def count(self, key: str) -> int:
        value = self.values[key]
        if not is_count(value):
            self.refuse(key, f"{key} as a whole number > 0", _AGAIN)
        return value

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            self.refuse(key, f"{key} as true or false", _AGAIN)
        return value

    def at_most(self, most: int, *keys: str) -> None:
        """Refuse a count above what the tensors allow."""
        for key in keys:
            if self.count(key) > most:
                self.refuse(key, f"{key} within 1..{most}, which the tensors allow", _AGAIN)

    def refuse(self, key: str, expected: str, remedy: str, got: str | None = None) -> NoReturn:
        found = f"{key}={brief(self.values.get(key))}" if got is None else got
        raise ValueError(f"{self.file}: expected {expected}, got {found}; {remedy}")


def _longest(tensors: Mapping[str, Tensor]) -> int:
    """The largest size of an axis."""
    return max((size for value in tensors.values() for size in value.shape), default=0)


class _DiffusionPolicy(_Policy):
    prefix = "diffusion.unet."
    silent = {
        "n_obs_steps": 2,
        "horizon": 16,
        "down_dims": [512, 1024, 2048],
        "kernel_size": 5,
        "n_groups": 8,
        "diffusion_step_embed_dim": 128,
        "use_film_scale_modulation": True,
    }

    def declaration(self) -> dict[str, Any]:
        return read_scheduler(self.file)

    def _build(self) -> nn.Module:
        return TrajectoryUnet(
            in_dim=self.in_dim(),
            cond_dim=self.cond_dim(),
            down_dims=self._stages(),
            kernel_size=self.count("kernel_size"),
            num_groups=self.count("n_groups"),
            time_dim=self.count("diffusion_step_embed_dim"),
            scales=bool(self.values["use_film_scale_modulation"]),
        )

    def check_within(self, tensors: Mapping[str, Tensor]) -> None:
        most = _longest(tensors)
        self.at_most(most, "diffusion_step_embed_dim", "kernel_size", "n_groups")
        stages = self._stages()
        if len(stages) > len(tensors) or max(stages, default=0) > most:
            self.refuse("down_dims", f"down_dims within 1..{most}, which the tensors allow", _AGAIN)
        self.check_features(most)

    def seen(self) -> int:
        """The numbers of one observation: the state's and, if it sees one, the place's."""
        found = self.observed(_STATE, _PLACE)
        seen = self.width("input_features", _STATE)
        return seen + self.width("input_features", _PLACE) if _PLACE in found else seen

    def _stages(self) -> list[int]:
        value = self.values["down_dims"]
        if not isinstance(value, list) or not all(is_count(dim) for dim in value):
            self.refuse("down_dims", "down_dims as whole numbers > 0", _AGAIN)
        return value


class _MultiTaskPolicy(_Policy):
    prefix = "noise_predictor."
    silent = {
        "n_obs_steps": 2,
        "horizon": 32,
        "objective": "diffusion",
        "sigma_min": 0.0,
        "hidden_dim": 512,
        "num_layers": 6,
        "num_heads": 8,
        "timestep_embed_dim": 256,
        "use_rope": True,
        "rope_base": 10000.0,
        "use_positional_encoding": False,
    }

    def declaration(self) -> dict[str, Any]:
        objective = self.values["objective"]
        if objective == "diffusion":
            return read_scheduler(self.file)
        if objective != "flow_matching":
            self.refuse("objective", "objective diffusion or flow_matching", _AGAIN)
        if self.values["sigma_min"] != 0:
            self.refuse("sigma_min", "sigma_min 0, data without noise", _FACTORY)
        return {"path": "linear", "prediction": "velocity", "data_at": 1, "time_scale": 1.0}

    def _build(self) -> nn.Module:
        return TrajectoryTransformer(
            in_dim=self.in_dim(),
            cond_dim=self.cond_dim(),
            embedding_dim=self.count("hidden_dim"),
            num_layers=self.count("num_layers"),
            num_attention_heads=self.count("num_heads"),
            time_dim=self.count("timestep_embed_dim"),
            rotary=self.flag("use_rope"),
            rotary_base=self.values["rope_base"],
            positions=self.count("horizon") if self.flag("use_positional_encoding") else 0,
        )

    def check_within(self, tensors: Mapping[str, Tensor]) -> None:
        self.at_most(len(tensors), "num_layers")
        self.at_most(_longest(tensors), "hidden_dim", "num_heads", "timestep_embed_dim")
        if self.flag("use_positional_encoding"):
            self.at_most(_longest(tensors), "horizon")
        self.check_features(_longest(tensors))

    def seen(self) -> int:
        """The numbers of one observation: the state's, and the features of the instruction, which
        are as many as a token's channels."""
        self.observed(_STATE)
        return self.width("input_features", _STATE) + self.count("hidden_dim")
