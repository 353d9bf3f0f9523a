"""README.md of a policy package: how to run it, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["policy_page"]


def policy_page(manifest: Mapping[str, Any]) -> str:
    """The page, in Markdown, of a package with this manifest."""
    own = manifest["fastgen"]
    lines = [
        "---",
        "pipeline_tag: robotics",
        "tags:",
        "- robotics",
        "- lerobot",
        "- onnx",
        "---",
        "",
        "# Few-step policy",
        "",
        _summary(own),
        "",
        *_example(own),
        "",
        "| input | shape | dtype | units | may be left out |",
        "|---|---|---|---|---|",
        *map(_row, own["inputs"]),
        "",
        "Noise that is left out is drawn in the graph; `onnxruntime.set_seed` before the session "
        "is made repeats it. Normalisers are in the graph: `stats.safetensors` is for information.",
        "",
        "## What was measured of this file",
        "",
        *_measured(own),
        "",
    ]
    return "\n".join(lines)


def _summary(own: Mapping[str, Any]) -> str:
    calls = own["steps"]
    _, tokens, channels = own["outputs"][0]["shape"]
    network = f"{calls} network call{'s' if calls > 1 else ''}"
    return (
        f"`action` (B, {tokens}, {channels}), a chunk of {tokens} actions, in {network}: one run "
        "of `model.onnx`. It needs onnxruntime and numpy."
    )


def _example(own: Mapping[str, Any]) -> list[str]:
    lines = ["```python", "import numpy as np", "import onnxruntime", ""]
    lines.append("options = onnxruntime.SessionOptions()")
    lines.append("options.log_severity_level = 3  # it warns of inputs that may be left out")
    lines.append('session = onnxruntime.InferenceSession("model.onnx", options)')
    lines.append("given = {  # your observations in place of the ones")
    for each in own["inputs"]:
        if not each.get("optional"):
            lines.append(f'    "{each["name"]}": np.ones({_sizes(each)}, "{each["dtype"]}"),')
    lines += ["}", '(action,) = session.run(["action"], given)', "print(action.shape)", "```"]
    return lines


def _sizes(each: Mapping[str, Any]) -> tuple[int, ...]:
    """Of one row."""
    limits = {axis: most for axis, (_, most) in each.get("limits", {}).items()}
    sizes = [limits.get(axis, 1) if isinstance(axis, str) else axis for axis in each["shape"]]
    return tuple(sizes)


def _row(each: Mapping[str, Any]) -> str:
    shape = ", ".join(map(str, each["shape"]))
    optional = "yes" if each.get("optional") else ""
    return f"| `{each['name']}` | ({shape}) | {each['dtype']} | {each['units']} | {optional} |"


def _measured(own: Mapping[str, Any]) -> list[str]:
    error = own["error"]
    lines = [
        f"- Differences from the student in torch, in standard deviations of the data: "
        f"{error['largest']:.2g} at most, {error['rms']:.2g} root mean square."
    ]
    found = own["equivariance"]
    if found is None:
        return lines
    if "errors" not in found:
        return [*lines, f"- Equivariance not measured: {found['not_measured']}."]
    errors = found["errors"]
    worst = max(errors, key=errors.__getitem__)
    return [
        *lines,
        f"- Equivariance under {found['group']}, {len(errors)} elements, relative L2 error: "
        f"{errors[worst]:.2g} at most, under {worst}.",
    ]
