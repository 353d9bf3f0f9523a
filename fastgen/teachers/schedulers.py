"""Schedulers of other libraries: what their config files say of how a network was trained.

A `scheduler_config.json` of diffusers, or the `config.json` of a lerobot diffusion policy, is read
into arguments of `as_rectified_flow`. What changes a network's law and has no words here is refused
by its name. What only says how the library samples (`use_karras_sigmas`, `variance_type` of fixed
kinds, `shift`, ...) changes no law and is passed over. Where a file leaves a key out, the default
of the class that it names holds.

| of the file                                    | here                                       |
|------------------------------------------------|--------------------------------------------|
| num_train_timesteps, beta_start, beta_end,     | path: betas                                |
| beta_schedule, trained_betas, rescale_betas_.. |                                            |
| prediction_type epsilon, sample, v_prediction, | prediction eps, x0, v, flow                |
| flow_prediction                                |                                            |
| clip_sample, clip_sample_range                 | clip_sample [-range, range]                |
| timestep_spacing, steps_offset (DDPM, DDIM,    | spacing                                    |
| PNDM)                                          |                                            |
| FlowMatch...: num_train_timesteps              | path linear, prediction flow, time_scale   |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from .._core.json_files import read_json
from .._core.messages import brief
from .clocks import beta_table

__all__ = ["read_scheduler"]

_FILE = "scheduler_config.json"
_PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "squared_cosine",
    "sigmoid": "sigmoid",
}
# Classes of tables: those that clip unless told otherwise, those whose spacing is one of rows, and
# those whose betas are Stable Diffusion's unless told otherwise.
_CLIPPING = ("DDPM", "DDPMParallel", "DDIM", "DDIMParallel")
_OF_ROWS = (*_CLIPPING, "PNDM")
_OF_STABLE_BETAS = ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE")
_TABLES = (
    *_OF_ROWS,
    *_OF_STABLE_BETAS,
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPCMultistep",
    "DEISMultistep",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "LMSDiscrete",
    "SASolver",
)
_FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
# What lerobot's DiffusionConfig takes where its file is silent.
_LEROBOT = {
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 100,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}


def read_scheduler(path: str | Path) -> dict[str, Any]:
    """Arguments of `as_rectified_flow` for the network that a scheduler's config belongs to.

    Args:
        path: a `scheduler_config.json`, lerobot's `config.json`, or a folder with one of them, such
            as that of a `save_pretrained` pipeline, whose `scheduler/` holds it.

    Raises:
        ValueError: no such file, one that isn't JSON or is too large, a value of another kind, a
            scheduler that isn't known here, or a key that changes the law and can't be honoured;
            names file and key.
    """
    file = _file_of(Path(path))
    # diffusers writes -Infinity, of keys that say nothing of the law.
    values = read_json(file, only_finite=False)
    if "_class_name" not in values and "noise_scheduler_type" in values:
        name = _Values(file, values).text("noise_scheduler_type", "")
        values = {**_LEROBOT, **values, "_class_name": f"{name}Scheduler"}
    return _Values(file, values).declaration()


def _file_of(path: Path) -> Path:
    """The config file that a path means."""
    if not path.is_dir():
        return path
    candidates = [path / _FILE, path / "scheduler" / _FILE, path / "config.json"]
    for file in candidates:
        if file.is_file():
            return file
    raise ValueError(
        f"{path}: expected {_FILE} in it or in its scheduler/, or lerobot's config.json, got none"
    )


class _Values:
    """The values of one file, each checked when it is asked for."""

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        self.file = file
        self.values = values

    # ---- Values of a kind ------------------------------------------------------------------------

    def refuse(self, key: str, expected: str) -> NoReturn:
        raise ValueError(
            f"{self.file}: expected {expected}, got {key}={brief(self.values.get(key))}"
        )

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            self.refuse(key, f"{key} as text")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, f"{key} as true or false")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, f"{key} as a number")
        if not math.isfinite(value):
            self.refuse(key, f"{key} as a finite number")
        return float(value)

    def count(self, key: str, default: int, least: int) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 100_000:
            self.refuse(key, f"{key} as a whole number in {least}..100000")
        return value

    # ---- What they say ---------------------------------------------------------------------------

    def declaration(self) -> dict[str, Any]:
        """The arguments of `as_rectified_flow`."""
        name = self.text("_class_name", "").removesuffix("Scheduler")
        if name in _FLOWS:
            return self._flow()
        if name not in _TABLES:
            self._refuse_class(name)
        self._refuse_other_laws()
        prediction = self._prediction()
        if prediction == "flow" or self.flag("use_flow_sigmas"):
            if prediction != "flow":
                self.refuse("prediction_type", "prediction_type flow_prediction for flow sigmas")
            return self._flow()
        found = {"path": self._path(name), "prediction": prediction}
        clip = self._clip(name)
        if clip is not None:
            found["clip_sample"] = clip
        spacing = self._spacing(name)
        if spacing is not None:
            found["spacing"] = spacing
        return found

    def _refuse_class(self, name: str) -> NoReturn:
        known = ", ".join((*_TABLES, *_FLOWS))
        if name.startswith("EDM"):
            self.refuse(
                "_class_name",
                "a network that is preconditioned itself (let the factory return it so, with "
                "teacher.path=edm and teacher.prediction=x0); this scheduler does it outside",
            )
        self.refuse("_class_name", f"a scheduler of diffusers among {known} (+ Scheduler)")

    def _refuse_other_laws(self) -> None:
        """Refuse what would make another network of it, or another sample."""
        variance = self.values.get("variance_type")
        if variance in ("learned", "learned_range"):
            self.refuse(
                "variance_type",
                "a network that answers its prediction alone (let the factory drop the variance, "
                "the second half of the channels)",
            )
        if self.flag("thresholding") and self.number("sample_max_value", 1.0) != 1.0:
            self.refuse(
                "sample_max_value",
                "no dynamic thresholding, whose limits vary from sample to sample: thresholding "
                "false, or sample_max_value 1.0, which clips to [-1, 1]; or a "
                "teacher.clip_sample in place of teacher.scheduler",
            )

    def _prediction(self) -> str:
        usual = "epsilon" if self.flag("predict_epsilon", True) else "sample"
        found = self.text("prediction_type", usual)
        if found not in _PREDICTIONS:
            self.refuse("prediction_type", f"prediction_type {', '.join(_PREDICTIONS)}")
        return _PREDICTIONS[found]

    def _flow(self) -> dict[str, Any]:
        if self.flag("invert_sigmas"):
            self.refuse("invert_sigmas", "invert_sigmas false: a clock that starts at the noise")
        rows = self.count("num_train_timesteps", 1000, 1)
        return {"path": "linear", "prediction": "flow", "data_at": 0, "time_scale": float(rows)}

    def _path(self, name: str) -> dict[str, Any]:
        if self.values.get("trained_betas") is not None:
            betas = self._trained_betas()
        else:
            schedule = self.text("beta_schedule", "linear")
            if schedule not in _SCHEDULES:
                self.refuse("beta_schedule", f"beta_schedule {', '.join(_SCHEDULES)}")
            start, end = (8.5e-4, 0.012) if name in _OF_STABLE_BETAS else (1e-4, 0.02)
            arguments: dict[str, Any] = {
                "schedule": _SCHEDULES[schedule],
                "rows": self.count("num_train_timesteps", 1000, 2),
            }
            if schedule != "squaredcos_cap_v2":
                arguments["beta_start"] = self.number("beta_start", start)
                arguments["beta_end"] = self.number("beta_end", end)
            betas = self._checked_table(arguments)
            if not self.flag("rescale_betas_zero_snr"):
                return {"name": "betas", **arguments}
        if self.flag("rescale_betas_zero_snr"):
            betas = _without_signal_at_the_end(betas)
        return {"name": "betas", "betas": betas.tolist()}

    def _checked_table(self, arguments: dict[str, Any]) -> Tensor:
        try:
            return beta_table(**arguments)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error

    def _trained_betas(self) -> Tensor:
        betas = self.values["trained_betas"]
        numbers = [b for b in betas if type(b) in (int, float)] if isinstance(betas, list) else []
        is_table = 2 <= len(numbers) <= 100_000 and len(numbers) == len(betas)
        if not is_table or not all(0.0 < b <= 1.0 for b in numbers):
            self.refuse("trained_betas", "trained_betas as two or more numbers in (0, 1]")
        return torch.tensor(betas, dtype=torch.float64)

    def _clip(self, name: str) -> list[float] | None:
        if self.flag("thresholding"):
            return [-1.0, 1.0]
        if not self.flag("clip_sample", name in _CLIPPING):
            return None
        limit = self.number("clip_sample_range", 1.0)
        if limit <= 0.0:
            self.refuse("clip_sample_range", "clip_sample_range > 0")
        return [-limit, limit]

    def _spacing(self, name: str) -> str | dict[str, Any] | None:
        if name not in _OF_ROWS:
            return None
        spacing = self.text("timestep_spacing", "leading")
        if spacing not in ("leading", "linspace", "trailing"):
            self.refuse("timestep_spacing", "timestep_spacing leading, linspace or trailing")
        offset = self.count("steps_offset", 0, 0)
        if spacing == "leading" and offset:
            return {"name": spacing, "offset": offset}
        return spacing


def _without_signal_at_the_end(betas: Tensor) -> Tensor:
    """Betas (N,) whose sqrt(abar) is shifted to 0 in the last row and scaled back in the first (Lin
    et al. 2023, arXiv:2305.08891, algorithm 1)."""
    root = torch.log1p(-betas).cumsum(0).mul(0.5).exp()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    abar = root.square()
    return 1.0 - torch.cat([abar[:1], abar[1:] / abar[:-1]])
