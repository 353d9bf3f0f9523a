"""A student as a policy that LeRobot steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from fastgen import load_student

from .chunks import Chunks, joined
from .configuration_fastgen import FastgenConfig

_TRAINS = "a student is trained by fastgen: this policy samples it"


class FastgenPolicy(PreTrainedPolicy):
    """The policy of a folder that `recipes/export.py STUDENT --to lerobot` has written.

    Args:
        config: of the policy.
        folder: of the policy; None: `config.pretrained_path`.

    Raises:
        ValueError: there is no folder with a student.
    """

    config_class = FastgenConfig
    name = "fastgen"

    def __init__(self, config: FastgenConfig, folder: str | Path | None = None, **_: Any) -> None:
        super().__init__(config)
        config.validate_features()
        folder = folder or config.pretrained_path
        if folder is None:
            raise ValueError(f"expected the folder of a policy, got none; {_TRAINS}")
        self._student = load_student(Path(folder) / config.student, device=config.device or "cpu")
        self.network = self._student.network  # so that `to` moves it
        self._chunks = Chunks(config.n_obs_steps, config.n_action_steps, config.lead)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> FastgenPolicy:
        """The policy in a folder, or in a repository of the hub."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(
                snapshot_download(
                    str(pretrained_name_or_path),
                    revision=revision,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                )
            )
        if config is None:
            config = PreTrainedConfig.from_pretrained(folder)
        return cls(config, folder).eval()

    def reset(self) -> None:
        """Forget the episode."""
        self._chunks.reset()

    @torch.no_grad()
    def select_action(
        self, batch: dict[str, Tensor], noise: Tensor | None = None, **_: Any
    ) -> Tensor:
        """The next action (B, d_x) for observations of one step; `noise`: of the chunk that is
        sampled where no action is left."""
        self._observe(batch)
        if self._chunks.is_empty:
            self._chunks.fill(self._sampled(noise))
        return self._chunks.next()

    @torch.no_grad()
    def predict_action_chunk(
        self, batch: dict[str, Tensor], noise: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Actions (B, T_x - lead, d_x) from the newest observation on, for observations of one
        step, or a history of them (B, n_obs_steps, ...)."""
        self._observe(batch)
        return self._chunks.coming(self._sampled(noise))

    def _observe(self, batch: dict[str, Tensor]) -> None:
        self._chunks.observe(joined(batch, list(self.config.input_features)))

    def _sampled(self, noise: Tensor | None) -> Tensor:
        return self._student.sample(self._chunks.history, steps=self.config.steps, noise=noise)

    def get_optim_params(self) -> dict:
        raise NotImplementedError(_TRAINS)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        raise NotImplementedError(_TRAINS)
