"""Statistics that were saved of data, by which a network that is trained already saw them.

They lie in a LeRobot data set (`meta/stats.json`), or beside a LeRobot policy
(`policy_preprocessor.json`, which names a `.safetensors` file). To a channel with the limits a, b

    mean_std: (x - mean) / (std + eps)        min_max, quantiles: 2 (x - a) / (b - a) - 1

is done there, with eps in place of b - a where that is 0; so it is here. Written by
https://github.com/huggingface/lerobot (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._core.files import expand_home
from ..._core.json_files import read_json
from ..._core.messages import brief, first_names
from ..._core.tensor_files import read_safetensors

__all__ = ["Limits", "read_limits"]

_POLICY = "policy_preprocessor.json"
_STATS = ("meta/stats.json", "stats.json")
# Kind -> the two statistics that it needs.
_NEEDS = {"mean_std": ("mean", "std"), "min_max": ("min", "max"), "quantiles": ("q01", "q99")}
_KINDS = {
    "MEAN_STD": "mean_std",
    "MIN_MAX": "min_max",
    "QUANTILES": "quantiles",
    "IDENTITY": "identity",
}
# What a feature of a policy may be.
_TYPES = ("STATE", "ENV", "ACTION", "VISUAL", "REWARD", "LANGUAGE")
_EPS = 1e-8
# Steps of a policy's preprocessor that change no number of its states and actions.
_HARMLESS = ("to_batch_processor", "device_processor", "tokenizer_processor")


@dataclass(frozen=True)
class Limits:
    """Statistics by the name of a column.

    Attributes:
        path: of the file, for messages.
        statistics: column -> {"mean", "std", "min", ...: (d,) float64}.
        kinds: column -> what a policy does to it; None: they are of data alone.
        renamed: column of the data -> its name here.
        eps: as in the formulas above.
    """

    path: Path
    statistics: Mapping[str, Mapping[str, Tensor]]
    kinds: Mapping[str, str] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    eps: float = _EPS

    def affine(self, columns: Sequence[str], kind: str | None) -> tuple[Tensor, Tensor]:
        """Origin and scale (d,) of the channels of some columns, side by side.

        Args:
            columns: their names.
            kind: what is done to them; None: what the policy does.

        Raises:
            ValueError: a column or a statistic of it that isn't there, named; or no kind.
        """
        parts = [self._affine_of(self.renamed.get(name, name), kind) for name in columns]
        return torch.cat([mean for mean, _ in parts]), torch.cat([scale for _, scale in parts])

    def _affine_of(self, name: str, kind: str | None) -> tuple[Tensor, Tensor]:
        if kind is None:
            kind = self._kind_of(name)
        if name not in self.statistics:
            raise ValueError(
                f"{self.path}: expected statistics of {name}, got those of "
                f"{first_names(sorted(self.statistics), 12)}; data.normalize.action_keys and "
                "observation_keys name others"
            )
        found = self.statistics[name]
        if kind == "identity":
            # The count of rows is one number.
            size = max((value.numel() for value in found.values()), default=0)
            return torch.zeros(size).double(), torch.ones(size).double()
        low, high = (self._statistic(name, key, kind) for key in _NEEDS[kind])
        if low.shape != high.shape:
            raise ValueError(
                f"{self.path}: expected as many numbers in {' and '.join(_NEEDS[kind])} of {name}, "
                f"got {low.numel()} and {high.numel()}"
            )
        if bool((high < (0 if kind == "mean_std" else low)).any()):
            raise ValueError(
                f"{self.path}: expected {' <= '.join(_NEEDS[kind])} of {name}, and no std below 0, "
                f"got {brief(low.tolist())} and {brief(high.tolist())}"
            )
        if kind == "mean_std":
            return low, high + self.eps
        width = torch.where(high == low, self.eps, high - low)
        return low + width / 2, width / 2

    def _kind_of(self, name: str) -> str:
        if self.kinds is None:
            raise ValueError(
                "expected data.normalize.kind (mean_std, min_max, quantiles) beside limits of "
                f"data, got none; {self.path} doesn't say how its teacher was trained"
            )
        if name not in self.kinds:
            raise ValueError(
                f"{self.path}: expected {name} among the features of the policy, got "
                f"{first_names(sorted(self.kinds), 12)}; data.normalize.action_keys and "
                "observation_keys name others"
            )
        return self.kinds[name]

    def _statistic(self, name: str, key: str, kind: str) -> Tensor:
        found = self.statistics[name]
        if key not in found:
            raise ValueError(
                f"{self.path}: expected {key} of {name} for {kind}, got "
                f"{first_names(sorted(found))}"
            )
        value = found[key]
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{self.path}: expected finite numbers in {key} of {name}, got others")
        return value


def read_limits(path: str | Path) -> Limits:
    """The statistics at a path.

    Args:
        path: of a data set's folder, of a policy's, of `stats.json` or of
            `policy_preprocessor.json`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: neither of these, or one that can't be honoured; the message says what.
    """
    path = expand_home(path)
    if not path.exists():
        raise FileNotFoundError(f"expected statistics at {path}, got nothing there")
    if path.is_dir():
        path = _file_in(path)
    value = read_json(path, only_finite=False)
    if "steps" in value:
        return _of_policy(path, value)
    statistics = {}
    for name, found in value.items():
        if not isinstance(found, dict):
            raise ValueError(f"{path}: expected statistics of {brief(name)}, got {brief(found)}")
        statistics[name] = {key: _numbers(path, f"{name}.{key}", x) for key, x in found.items()}
    return Limits(path, statistics)


def _file_in(folder: Path) -> Path:
    """The file of statistics in a folder."""
    for name in (_POLICY, *_STATS):
        if (folder / name).is_file():
            return folder / name
    if (folder / "meta" / "episodes_stats.jsonl").is_file():
        raise ValueError(
            f"{folder}: expected meta/stats.json, got a data set of version 2.1, which keeps "
            "statistics of episodes alone; convert it to v3.0 with lerobot's own script"
        )
    raise ValueError(
        f"{folder}: expected {_POLICY} of a policy or meta/stats.json of a data set, got neither; "
        "a policy that was saved before lerobot 0.4 is converted by its own script, "
        "migrate_policy_normalization"
    )


def _numbers(path: Path, name: str, value: Any) -> Tensor:
    """Numbers in any nesting, in a row: (d,) float64."""
    if _holds_a_word(value):
        raise ValueError(f"{path}: expected numbers as {name}, got {brief(value)}")
    try:
        return torch.tensor(value, dtype=torch.float64).reshape(-1)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: expected numbers as {name}, got {brief(value)}") from error


def _holds_a_word(value: Any) -> bool:
    """Whether there is a true or false in some nesting, which a tensor would take for a number."""
    if isinstance(value, list):
        return any(map(_holds_a_word, value))
    return isinstance(value, bool)


# ---- Policies ------------------------------------------------------------------------------------


def _of_policy(path: Path, value: dict[str, Any]) -> Limits:
    """What the preprocessor of a policy does to states and actions."""
    steps = value["steps"]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError(f"{path}: expected steps as a list of objects, got {brief(steps)}")
    renamed: dict[str, str] = {}
    normalizers = []
    for step in steps:
        name = step.get("registry_name")
        config = step.get("config", {})
        if name == "rename_observations_processor":
            renamed = _texts(path, "rename_map", config)
        elif name == "normalizer_processor":
            normalizers.append(step)
        elif name not in _HARMLESS:
            raise ValueError(
                f"{path}: expected steps that rename or normalise, got {brief(name)}, which may "
                "change what the policy sees; do the same to the data, and give "
                "data.normalize.kind with the limits of the data that come out"
            )
    if len(normalizers) != 1:
        raise ValueError(
            f"{path}: expected one step normalizer_processor, got {len(normalizers)}; for a policy "
            "that normalises nothing say data.normalize=false"
        )
    return _of_step(path, normalizers[0], renamed)


def _of_step(path: Path, step: dict[str, Any], renamed: dict[str, str]) -> Limits:
    config = step.get("config")
    file = step.get("state_file")
    if not isinstance(config, dict) or not isinstance(file, str) or Path(file).name != file:
        raise ValueError(
            f"{path}: expected config and state_file, a name, of normalizer_processor, got "
            f"{brief(step)}"
        )
    statistics: dict[str, dict[str, Tensor]] = {}
    for key, value in read_safetensors(path.parent / file).items():
        column, _, statistic = key.rpartition(".")
        statistics.setdefault(column, {})[statistic] = value.double().reshape(-1)
    eps = config.get("eps", _EPS)
    if type(eps) is not float or not 0 < eps < 1:
        raise ValueError(f"{path}: expected eps between 0 and 1, got {brief(eps)}")
    return Limits(path, statistics, _kinds(path, config), renamed, eps)


def _kinds(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Column -> what the policy does to it."""
    modes = _texts(path, "norm_map", config)
    features = config.get("features")
    if not isinstance(features, dict):
        raise ValueError(f"{path}: expected features as an object, got {brief(features)}")
    only = config.get("normalize_observation_keys")
    kinds = {}
    for name, feature in features.items():
        kind = feature.get("type") if isinstance(feature, dict) else None
        if not isinstance(kind, str) or kind not in {*_TYPES, *modes}:
            raise ValueError(
                f"{path}: expected the type of {name[:80]} as one of {', '.join(_TYPES)}, got "
                f"{brief(feature)}"
            )
        # A type that isn't named there is left as it is, and so are states that aren't listed.
        mode = modes.get(kind, "IDENTITY")
        if isinstance(only, list) and kind != "ACTION" and name not in only:
            mode = "IDENTITY"
        kinds[name] = mode
    unknown = sorted({mode for mode in kinds.values() if mode not in _KINDS})
    if unknown:
        raise ValueError(
            f"{path}: expected norm_map to say {', '.join(_KINDS)}, got {brief(unknown[0])}"
        )
    return {name: _KINDS[mode] for name, mode in kinds.items()}


def _texts(path: Path, key: str, config: Any) -> dict[str, str]:
    """An object of names at a key of a step's config."""
    value = config.get(key) if isinstance(config, dict) else None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{path}: expected {key} as an object of names, got {brief(value)}")
    return value
