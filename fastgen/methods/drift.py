"""Drift on data: after KD the student learns from the data alone, without any judge.

Sets of its samples drift to sets of data of their condition, and away from one another
(:mod:`fastgen.set_losses`). Neither the teacher nor any other network is asked: what the teacher
knows is in the weights that the student starts from. It is DMD2 with another loss: `set_weight` on
`set_target=data` in place of VSD.

References:
    Deng et al., Generative Modeling via Drifting, 2026.
"""

from __future__ import annotations

from ..config.matching import MatchingConfig
from ..config.schemas import DistillConfig
from .dmd2 import DMD2
from .method import Method, Networks, refuse_divergence, refuse_fake_score

__all__ = ["Drift"]


class Drift(DMD2):
    """A drift to the data alone."""

    stage = "drift"
    title = "Drift"
    colour = "#CC79A7"
    remedy = Method.remedy
    serves_prefixes = False

    def complete(self, cfg: DistillConfig) -> DistillConfig:
        """Without VSD; sets of data, compared by drift with weight 1 unless said otherwise."""
        dmd = cfg.dmd
        if dmd.vsd_weight not in (0.0, MatchingConfig().vsd_weight):
            raise ValueError(
                "expected no dmd.vsd_weight with method=drift, which has no VSD loss, got "
                f"{dmd.vsd_weight}; leave it out, or set method=dmd2"
            )
        meant = {"set_loss": "drift", "set_target": "data"}
        other = {
            key: getattr(dmd, key)
            for key, value in meant.items()
            if key in dmd.model_fields_set and getattr(dmd, key) != value
        }
        if other:
            asked = ", ".join(f"dmd.{key}={value}" for key, value in other.items())
            raise ValueError(
                f"expected no {asked} with method=drift, which is a drift to the data; leave it "
                "out, or set method=dmd2"
            )
        changed = {**meant, "vsd_weight": 0.0, "set_weight": dmd.set_weight or 1.0}
        return cfg.model_copy(update={"dmd": dmd.model_copy(update=changed)})

    def check(self, networks: Networks, *, processes: int, sharded: bool) -> None:
        refuse_divergence(networks.cfg)
        refuse_fake_score(networks.cfg, "method=drift")
        super().check(networks, processes=processes, sharded=sharded)
