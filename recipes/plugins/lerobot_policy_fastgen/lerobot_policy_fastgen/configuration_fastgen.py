"""What `config.json` of a policy says."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode

_IDENTITY = {
    "STATE": NormalizationMode.IDENTITY,
    "ENV": NormalizationMode.IDENTITY,
    "ACTION": NormalizationMode.IDENTITY,
}


@PreTrainedConfig.register_subclass("fastgen")
@dataclass
class FastgenConfig(PreTrainedConfig):
    """A student of fastgen as a policy.

    Attributes:
        chunk_size: T_x, actions that are sampled at once.
        n_action_steps: of which so many are executed before the next chunk.
        lead: place in a chunk of the action of the newest observation.
        steps: network calls, among the student's; None: the most of them.
        student: the student's folder within that of the policy.
        normalization_mapping: identity: the student normalises.
    """

    chunk_size: int = 1
    n_action_steps: int = 1
    lead: int = 0
    steps: int | None = None
    student: str = "student"
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_IDENTITY.copy)

    def __post_init__(self) -> None:
        super().__post_init__()
        coming = self.chunk_size - self.lead
        if not 1 <= self.n_action_steps <= coming:
            raise ValueError(
                f"expected n_action_steps within 1 and {coming}, chunk_size - lead, got "
                f"{self.n_action_steps}"
            )

    @property
    def observation_delta_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(-self.lead, self.chunk_size - self.lead))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def validate_features(self) -> None:
        if self.action_feature is None or not self.input_features:
            raise ValueError("expected config.json to name input_features and the feature action")

    def get_optimizer_preset(self):
        raise NotImplementedError("a student is trained by fastgen")

    def get_scheduler_preset(self) -> None:
        return None
