"""README.md of a student folder: what it is, how to use it, how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["student_card"]


def student_card(config: Mapping[str, Any], numbers: int) -> str:
    """The page, in Markdown.

    Args:
        config: the content of config.json.      numbers: how many the network has.
    """
    network = config["network"]
    steps = config["steps"]
    description = config["description"]
    shape = ", ".join(map(str, config["horizon"]))
    built_in = network["class"] != "custom"
    name = network["class"] if built_in else network["name"]
    z_code = "...  # what the network takes"
    z_shape = "cond"
    if config["cond_horizon"] is not None:
        t_z, d_z = config["cond_horizon"]
        z_code = f"torch.zeros(1, {t_z}, {d_z})  # conditions, original units"
        z_shape = f"z (B, T_z <= {t_z}, {d_z})"
    elif description.get("condition") == "none":
        z_code = "None  # nothing to condition on"
        z_shape = "no condition"
    elif isinstance(description.get("condition"), str):
        z_shape = f"z {description['condition']}"
        z_code = f"...  # {description['condition']}"
    calls = f"{max(steps)} network call{'s' if max(steps) > 1 else ''}"
    trajectories = config["cond_horizon"] is not None or config["x_normalizer"] is not None
    what = "trajectories" if trajectories else f"of shape ({shape})"
    summary = description.get("summary") or f"Samples {what} in {calls}; distilled with fastgen."
    noise = {"sde": "fresh noise at every rung", "ode": "every rung keeps the implied noise"}[
        config["sample_type"]
    ]
    facts = {
        "input -> output": f"{z_shape} -> x (B, {shape}), original units",
        "network calls on offer": ", ".join(map(str, steps)),
        "`t_list`": ", ".join(map(repr, config["t_list"])),
        "sampler": f"{config['sample_type']}: {noise}",
        "prediction": f"{config['pred_type']}, with t = 0 data and t = 1 noise",
        "network": f"{name}, {numbers:,} numbers in plain dense tensors",
        "group": f"{config['group']}, folded into the weights"
        if config["group"]
        else "none declared",
        "waypoints per token": str(config["pack"]),
        "trained as": _trained_as(config["parameterization"]),
        "guidance trained in": _guidance(description),
        "written by": f"fastgen-distill {config['package_version']}",
    }
    if not trajectories:
        del facts["waypoints per token"]
    if facts["guidance trained in"] is None:
        del facts["guidance trained in"]
    lines = [
        "# Few-step student",
        "",
        str(summary),
        "",
        "```python",
        "import fastgen, torch",
        f'student = fastgen.load_student("path/to/this/folder"{"" if built_in else f", network={name}(...)"})',
        f"z = {z_code}",
        f"x = student.sample(z, steps={max(steps)})  # (1, {shape}); num_samples=K gives (1, K, "
        f"{shape})",
        "```",
        "",
        "Loading and sampling need torch and safetensors "
        f"only{'' if built_in else f', and your class {name}'}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        *_score_lines(description.get("scores")),
        "`config.json` says all this for machines and holds the sha256 of the weights; edited "
        "files are refused.",
        "",
        "Licence: not stated. Whoever publishes these weights replaces this line.",
        "",
    ]
    return "\n".join(lines)


def _trained_as(parameterization: Mapping[str, Any] | None) -> str:
    """The network's own path, prediction and clock, which loading turns into rectified flow."""
    flow = (parameterization or {}).get("rectified_flow")
    if flow is None:
        return "rectified flow"
    clock = f"data at {flow['data_at']} of its clock, times {flow['time_scale']:g}"
    return f"{flow['path']['name']} path, {flow['prediction']}, {clock}; load_student converts it"


def _guidance(description: Mapping[str, Any]) -> str | None:
    """The guidance of the teacher: always its scale, and the rest where it is known; None without
    guidance."""
    scale = description.get("guidance_scale")
    interval = description.get("guidance_interval")
    if scale is None:
        return None
    parts = [f"scale {scale}"]
    if isinstance(interval, Sequence) and len(interval) == 2:
        parts.append(f"for t from {interval[0]} to {interval[1]}")
    if (rescale := description.get("guidance_rescale")) is not None:
        parts.append(f"rescaled by {rescale}")
    if (source := description.get("guidance_null_cond")) is not None:
        parts.append(f"away from {source}")
    return ", ".join(parts)


def _score_lines(scores: Any) -> list[str]:
    """Markdown of {name: value} or {row: {name: value}}; nothing for anything else."""
    if not isinstance(scores, Mapping) or not scores:
        return []
    rows = {str(k): v for k, v in scores.items() if isinstance(v, Mapping)} or {"": scores}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["## Scores", "", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, row in rows.items():
        values = [f"{row[n]:.4g}" if isinstance(row.get(n), int | float) else "" for n in names]
        lines.append(f"| {label} | {' | '.join(values)} |")
    return [*lines, ""]
