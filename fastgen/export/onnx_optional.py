"""Inputs of an ONNX graph that may be left out: what stands in their place is made in the graph.

An input beside a constant of its own name may be left out: onnxruntime takes the constant, and
doesn't list the input among `get_inputs()`. The constant here has no rows, and the graph makes
those that are missing,

    whole = [given, fill of (B - rows of given, ...)],

so that whoever gives all B rows is sure of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["NORMAL", "make_optional"]

# A fill that is drawn anew at each run: N(0, I).
NORMAL = "normal"


def make_optional(file: Path, fills: Mapping[str, str | float], like: str) -> None:
    """Let inputs of the graph in `file` be left out.

    Args:
        file: of the graph; it is written anew.
        fills: what stands in the place of each input, by name: `NORMAL` or a constant. Their rows
            are their only free axis.
        like: the input that has B rows.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(file)
    graph = model.graph
    kinds = {value.name: value.type.tensor_type for value in graph.input}
    made = [helper.make_node("Shape", [like], ["rows"], start=0, end=1)]
    for name, fill in fills.items():
        for node in graph.node:
            _rename(node.input, name, f"{name}.whole")
        sizes = [axis.dim_value for axis in kinds[name].shape.dim[1:]]
        dtype = helper.tensor_dtype_to_np_dtype(kinds[name].elem_type)
        graph.initializer.append(numpy_helper.from_array(np.zeros((0, *sizes), dtype), name))
        rest = numpy_helper.from_array(np.array(sizes, np.int64), f"{name}.sizes")
        graph.initializer.append(rest)
        made.extend(_filling(name, fill, dtype))
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, file)


def _rename(names: Any, old: str, new: str) -> None:
    for place, name in enumerate(names):
        if name == old:
            names[place] = new


def _filling(name: str, fill: str | float, dtype: Any) -> Iterator[Any]:
    """The nodes that make `name`.whole of `name`."""
    import numpy as np
    from onnx import helper, numpy_helper

    def node(kind: str, takes: list[str], makes: str, **how: Any) -> Any:
        return helper.make_node(kind, takes, [f"{name}.{makes}"], **how)

    yield node("Shape", [name], "rows", start=0, end=1)
    yield node("Sub", ["rows", f"{name}.rows"], "missing")
    yield node("Concat", [f"{name}.missing", f"{name}.sizes"], "shape", axis=0)
    value = np.array([0 if fill == NORMAL else fill], dtype)
    blank = "blank" if fill == NORMAL else "fill"
    yield node("ConstantOfShape", [f"{name}.shape"], blank, value=numpy_helper.from_array(value))
    if fill == NORMAL:
        yield node("RandomNormalLike", [f"{name}.blank"], "fill")
    yield node("Concat", [name, f"{name}.fill"], "whole", axis=0)
