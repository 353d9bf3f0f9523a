"""What a policy remembers between steps: the last observations, and actions that are still to come.

Needs torch alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Chunks", "joined"]


def joined(batch: Mapping[str, Tensor], features: Sequence[str]) -> Tensor:
    """Observations (B, d_z), or a history of them (B, T_z, d_z): the features, one behind the
    other.

    Raises:
        ValueError: a feature is missing.
    """
    missing = [name for name in features if name not in batch]
    if missing:
        raise ValueError(
            f"expected observations with {', '.join(features)}, got {', '.join(batch) or 'none'}"
        )
    return torch.cat([batch[name] for name in features], -1)


class Chunks:
    """Observations and actions of one episode, for B rows at a time.

    Args:
        observations: T_z, how many are kept.
        executed: actions of a chunk that are handed out before the next one.
        lead: place in a chunk of the action of the newest observation.
    """

    def __init__(self, observations: int, executed: int, lead: int = 0) -> None:
        self.executed = executed
        self.lead = lead
        self._seen: deque[Tensor] = deque(maxlen=observations)
        self._actions: deque[Tensor] = deque()

    def reset(self) -> None:
        """Forget the episode."""
        self._seen.clear()
        self._actions.clear()

    def observe(self, observation: Tensor) -> None:
        """Remember (B, d_z); the first one stands for those before it. A history (B, T_z, d_z)
        takes the place of all."""
        if observation.ndim == 3:
            self._seen.extend(observation.unbind(1))
            return
        while len(self._seen) < (self._seen.maxlen or 1) - 1:
            self._seen.append(observation)
        self._seen.append(observation)

    @property
    def history(self) -> Tensor:
        """Z (B, T_z, d_z), the newest last."""
        return torch.stack(list(self._seen), 1)

    @property
    def is_empty(self) -> bool:
        """Whether a new chunk is needed."""
        return not self._actions

    def coming(self, chunk: Tensor) -> Tensor:
        """The actions of a chunk (B, T_x, d_x) from the newest observation on."""
        return chunk[:, self.lead :]

    def fill(self, chunk: Tensor) -> None:
        """Queue what is executed of a new chunk."""
        self._actions.extend(self.coming(chunk)[:, : self.executed].unbind(1))

    def next(self) -> Tensor:
        """The next action (B, d_x)."""
        return self._actions.popleft()
