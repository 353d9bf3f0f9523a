"""ONNX: the whole sampler of a student as a graph that onnxruntime runs, without torch.

    model.onnx    manifest.json

Needs the extra `onnx`: onnx and onnxscript to write, onnxruntime to check what was written. Running
it needs onnxruntime and numpy.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .exported import WEIGHTS, FileFormat, Run, dynamic_shapes, write_exported
from .student import Student
from .whole_sampler import WholeSampler

__all__ = [
    "OPSET",
    "check_installed",
    "export_onnx",
    "narrow_products",
    "runner",
    "versions_of_onnx",
    "write_graph",
]

# Of onnxruntime 1.14 and later.
OPSET = 18
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Smaller constants aren't worth a node of their own.
_LEAST_STORED_HALF = 256


def export_onnx(
    student: Student | str | Path,
    path: str | Path,
    *,
    steps: int | None = None,
    weights: str = "float32",
    cond: Any = None,
    group: str | None = None,
    in_rep: Any = None,
    cond_rep: Any = None,
) -> dict[str, Any]:
    """Write a student's sampler as `model.onnx`, beside `manifest.json`, which is returned.

    The graph takes `noise` (B, *horizon), standard normal, and `cond` (B, T_z, d_z) in original
    units; under "sde" also `noise_2`, ... of the later rungs, and `mask`, `cond_mask`, `prefix` and
    `prefix_length` where the student was trained with them. It answers `x` (B, *horizon) in
    original units. B is free, and so is T_z where the student was trained with several.

    Args:
        student: or its folder.
        path: of the new folder.
        steps: network calls, among the student's; None: the most of them.
        weights: "float32"; "float16", stored so and computed with in float32; or "int8", by the
            dynamic quantisation of onnxruntime, but for the first and last layer; the error of
            either stands in the manifest.
        cond: some rows of a condition, for a network of one's own whose condition the folder
            doesn't describe.
        group: whose equivariance error is measured, such as "D4"; None: the one in the student's
            config, which networks of `fastgen.models` declare.
        in_rep, cond_rep: of a student with a group, as in a config; None: copies of `standard`, or
            `trivial` for one channel.

    Raises:
        ImportError: a package of the extra `onnx` is missing.
        ValueError: a student that can't be exported, or a graph that samples something else than
            the student (by over 1e-5 of the data's standard deviation; "float16": than the student
            of rounded weights).
        OSError: the folder can't be written.
    """
    check_installed()
    kind = FileFormat(
        "onnx",
        "model.onnx",
        WEIGHTS,
        _write,
        {"opset": OPSET, "versions": versions_of_onnx()},
        owned=("model.onnx.data",),
    )
    return write_exported(
        kind,
        student,
        path,
        steps=steps,
        weights=weights,
        cond=cond,
        group=group,
        in_rep=in_rep,
        cond_rep=cond_rep,
    )


def check_installed() -> None:
    """ImportError, which names the extra, where a package to write or check ONNX is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"expected {error.name or 'onnx'} for an export to ONNX, got {error}; install the "
            'extra: pip install -e ".[onnx]"'
        ) from error


def versions_of_onnx() -> dict[str, str]:
    """Version by package, of those that write and check."""
    return {name: metadata.version(name) for name in _NEEDED}


def _write(sampler: WholeSampler, example: list[Tensor], file: Path, weights: str) -> Run:
    write_graph(sampler, example, file, weights)
    return runner(file, [each.name for each in sampler.inputs], "x")


def write_graph(
    sampler: WholeSampler,
    example: list[Tensor],
    file: Path,
    weights: str,
    named: Callable[[str], str] = str,
) -> None:
    """Write the graph; `named`: how it calls the sampler's inputs and its output x."""
    with _quiet():
        program = torch.export.export(
            sampler, tuple(example), dynamic_shapes=(dynamic_shapes(sampler.inputs),)
        )
        graph = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[named(each.name) for each in sampler.inputs],
            output_names=[named("x")],
            opset_version=OPSET,
            verbose=False,
        )
        assert graph is not None  # it is None only where a file was named
        graph.save(str(file))
        _name_axes(sampler, file, named)
        if weights == "float16":
            _store_half(file)
        if weights == "int8":
            _quantize(file)


def _name_axes(sampler: WholeSampler, file: Path, named: Callable[[str], str]) -> None:
    """Call the free axes of inputs and output B and T_z, as the manifest does."""
    import onnx

    model = onnx.load(file)
    shapes = {named(each.name): each.shape for each in sampler.inputs}
    shapes[named("x")] = ("B", *sampler.student.horizon)
    for value in [*model.graph.input, *model.graph.output]:
        for place, axis in enumerate(shapes[value.name]):
            if isinstance(axis, str):
                value.type.tensor_type.shape.dim[place].dim_param = axis
    # Shapes within, under the names of the exporter, would contradict these.
    del model.graph.value_info[:]
    onnx.save(model, file)


def _store_half(file: Path) -> None:
    """Store the constants whose numbers float16 can hold in it; a node casts each of them back."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(file)
    casts = []
    for constant in model.graph.initializer:
        if constant.data_type != TensorProto.FLOAT:
            continue
        numbers = numpy_helper.to_array(constant)
        half = numbers.astype("float16")
        if numbers.size < _LEAST_STORED_HALF or not (half.astype("float32") == numbers).all():
            continue
        name = constant.name
        constant.CopyFrom(numpy_helper.from_array(half, f"{name}.float16"))
        casts.append(helper.make_node("Cast", [f"{name}.float16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, file)


def _quantize(file: Path) -> None:
    """Store weights of matrix products as whole numbers of 8 bits, a scale for each channel.

    The layers that read and write the data's channels stay in float: they are small, and all that
    they lose is seen in samples. Weights have 7 bits: processors without instructions for such
    products add two of them in 16 bits, which those of 8 bits overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.with_name("float32.onnx")
    file.rename(whole)
    kept = narrow_products(onnx.load(whole).graph)
    quantize_dynamic(
        whole,
        file,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        nodes_to_exclude=kept,
    )
    whole.unlink()


def narrow_products(graph: Any) -> list[str]:
    """The names of matrix products whose weights have a side below half of the network's width,
    which is the median of the smaller sides."""
    weights = {constant.name: list(constant.dims) for constant in graph.initializer}
    sides = {}
    for node in graph.node:
        shapes = [weights[name] for name in node.input if name in weights]
        if node.op_type in ("MatMul", "Gemm") and shapes and len(shapes[0]) == 2:
            sides[node.name] = min(shapes[0])
    if not sides:
        return []
    width = statistics.median_high(sides.values())
    narrow = [name for name, side in sides.items() if 2 * side < width]
    # A Gemm is made a product and a sum before, under another name.
    return [*narrow, *(f"{name}_MatMul" for name in narrow)]


def runner(file: Path, names: list[str], output: str) -> Run:
    """A function that runs the written file, by the names of its inputs and of its output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; a warning says that inputs may be left out
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(tensors: list[Tensor]) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run([output], given)[0])

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the exporters' progress and advice go nowhere."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
