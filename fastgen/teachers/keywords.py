"""Keyword networks: networks that take their arguments by name and answer with an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .._core.masks import masks_of
from ..networks import DECLARED, WAYS_TO_X0, Cond, NetworkWrapper

__all__ = ["KeywordNetwork"]


class KeywordNetwork(NetworkWrapper):
    """A network that takes keywords and answers with an object, called `net(x_t, t, cond)`.

    The default names are those of the transformers in diffusers; its UNets take `x="sample"`.

    Args:
        network: called `network(**{x: x_t, t: t, cond: cond})`. A condition that is a mapping is
            given as keywords of its own names; a condition None is left out. Masks of padded data
            are given as `mask` (B, T_x) and `cond_mask` (B, T_z), bool.
        x, t, cond: the network's names of the three. A network that takes no condition has cond
            None: it is given none, whatever the data hold.
        output: attribute or key of the answer that holds the prediction. Of a tuple the first entry
            is taken; an answer that is a Tensor is the prediction.

    Raises:
        ValueError: a name that isn't an identifier, or two of x, t and cond that are the same.
        TypeError: when called, an answer without a Tensor of the name `output`.
    """

    # A `predict_x0` of a network with another call takes other arguments, too.
    passes_on = tuple(name for name in DECLARED if name not in WAYS_TO_X0)

    def __init__(
        self,
        network: nn.Module,
        *,
        x: str = "hidden_states",
        t: str = "timestep",
        cond: str | None = "encoder_hidden_states",
        output: str = "sample",
    ) -> None:
        super().__init__(network)
        self.names = {"x": x, "t": t, "cond": cond, "output": output}
        for key, name in self.names.items():
            if key == "cond" and name is None:
                continue
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"expected {key} to be the name of an argument, got {name!r}")
        if len({x, t, cond}) < 3:
            raise ValueError(f"expected three different names, got x={x!r}, t={t!r}, cond={cond!r}")

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """The network's prediction for `x_t` (B, ...) at `t` (B,)."""
        keywords = {str(self.names["x"]): x_t, str(self.names["t"]): t}
        answer = self.network(**keywords, **self._conditions(cond))
        if isinstance(answer, Tensor):
            return answer
        found = self._output_of(answer)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"expected an answer with a Tensor {self.names['output']!r}, got "
                f"{type(answer).__name__}; say output=..."
            )
        return found

    def _conditions(self, cond: Cond) -> Mapping[str, Any]:
        """The condition as keywords."""
        name = self.names["cond"]
        Z, mask, cond_mask = masks_of(cond)
        masks = {key: x for key, x in (("mask", mask), ("cond_mask", cond_mask)) if x is not None}
        if Z is None or name is None:
            return masks
        return {**Z, **masks} if isinstance(Z, Mapping) else {name: Z, **masks}

    def _output_of(self, answer: Any) -> Any:
        """What the answer holds under the name of the output, None if nothing."""
        name = str(self.names["output"])
        found = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
        if found is None and isinstance(answer, tuple) and answer:
            return answer[0]
        return found
