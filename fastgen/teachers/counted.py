"""Counted network: a teacher whose evaluations are counted.

A *teacher evaluation* is one row through the teacher's network: a batch of B rows costs B, a guided
prediction two for each row. What it costs is the same on every machine, unlike seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._core.calls import call_intact
from .._core.row_counts import RowCount
from ..networks import Cond, NetworkWrapper

__all__ = ["CountedNetwork"]

Prediction = Callable[..., Tensor]


class CountedNetwork(NetworkWrapper):
    """A coat that counts the rows that its network is asked about, by its forward and by the
    predictions of x0 that it declares. Answers are the network's own, to the last bit.

    Guidance goes around it, so that both of its predictions are counted. Features of blocks are
    asked through it (`fastgen.methods.judges.named_features`).

    Args:
        network: called `network(x_t, t, cond)`, x_t (B, ...).
        count: where its rows are added up. A copy of this coat has a count of its own.
    """

    added_by_run = True

    def __init__(self, network: nn.Module, count: RowCount) -> None:
        super().__init__(network)
        self.count = count

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The network's prediction (B, ...)."""
        self.count.add(x_t.shape[0])
        return call_intact(self.network, x_t, t, cond)

    @property
    def predict_x0(self) -> Prediction:
        """The network's own `predict_x0(x_t, t, cond)`, counted.

        Raises:
            AttributeError: the network has none.
        """
        return self._counted("predict_x0")

    @property
    def unclipped_x0(self) -> Prediction:
        """As `predict_x0`, of the network's own `unclipped_x0`."""
        return self._counted("unclipped_x0")

    def _counted(self, name: str) -> Prediction:
        """A method that the network declares, whose rows are counted as those of its forward."""
        predict: Prediction = self.declared(name)

        def asked(x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
            self.count.add(x_t.shape[0])
            return call_intact(predict, x_t, t, cond)

        return asked
