"""The card of a student, README.md in its folder: what it is, how to use it, how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .._core.sizes import parse_sizes, sizes_text
from ..channel_kinds import KindNormalizer, read_normalizer

__all__ = ["CARD", "student_card"]

# Its name.
CARD = "README.md"

# Of a sample type: the noise of its rungs.
_NOISE = {"sde": "fresh noise at every rung", "ode": "every rung keeps the implied noise"}


def student_card(config: Mapping[str, Any], numbers: int) -> str:
    """The page, in Markdown.

    Args:
        config: the content of config.json.
        numbers: how many the network has.
    """
    facts = _facts(config, numbers)
    license = _license(config["description"])
    lines = [
        *_front_matter(config, license),
        "# Few-step student",
        "",
        _summary(config),
        "",
        *_example(config),
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        *_score_lines(config["description"].get("scores")),
        "`config.json` says all this for machines and holds the sha256 of the weights; edited "
        "files are refused.",
        "",
        "Licence: not stated. Whoever publishes these weights replaces this line."
        if license is None
        else f"Licence: {license}",
        "",
    ]
    return "\n".join(lines)


def _front_matter(config: Mapping[str, Any], license: str | None) -> list[str]:
    """What a hub of models reads at the head of a card, YAML between two lines."""
    tags = ["few-step", "distillation", "flow-matching"]
    if _are_trajectories(config):
        tags.append("trajectories")
    if config["group"]:
        tags.append("equivariant")
    # Text in JSON is text in YAML.
    said = [] if license is None else [f"license: {json.dumps(license)}"]
    return [
        "---",
        "library_name: fastgen-distill",
        *said,
        "tags:",
        *map("- {}".format, tags),
        "---",
        "",
    ]


def _license(description: Mapping[str, Any]) -> str | None:
    """The licence of the weights; None: it isn't said.

    Raises:
        ValueError: what is no line of text.
    """
    license = description.get("license")
    if license is None:
        return None
    if not isinstance(license, str) or not license.strip() or not license.isprintable():
        raise ValueError(
            f"expected description.license as the name of a licence, such as 'mit', got {license!r}"
        )
    return license


def _is_built_in(config: Mapping[str, Any]) -> bool:
    """Whether the network is one of `fastgen.models`, which needs no class of the user's."""
    return config["network"]["class"] != "custom"


def _network_name(config: Mapping[str, Any]) -> str:
    network = config["network"]
    return network["class"] if _is_built_in(config) else network["name"]


def _are_trajectories(config: Mapping[str, Any]) -> bool:
    """Whether samples are trajectories, of waypoints and channels."""
    return config["cond_horizon"] is not None or config["x_normalizer"] is not None


def _shape(config: Mapping[str, Any]) -> str:
    """The sizes of a sample: "4, 2"."""
    return ", ".join(map(str, config["horizon"]))


def _tokens(config: Mapping[str, Any], t_z: int, d_z: int) -> str:
    """Code of a condition: zeros, but for rotations, of which zeros are none."""
    state = config["z_normalizer"]
    normalizer = None if state is None else read_normalizer(state)
    if not isinstance(normalizer, KindNormalizer) or not normalizer.kinds.has_rotations:
        return f"torch.zeros(1, {t_z}, {d_z})"
    row = normalizer.kinds.collapse(torch.zeros(normalizer.network_dim))
    return f"torch.tensor({row.tolist()}).repeat(1, {t_z}, 1)"


def _condition(config: Mapping[str, Any]) -> tuple[str, str]:
    """(what is conditioned on, the code of an example of it)."""
    condition = config["description"].get("condition")
    if config["cond_horizon"] is not None:
        t_z, d_z = config["cond_horizon"]
        shape = f"(B, T_z <= {t_z}, {d_z})"
        if config.get("cond_sizes") is not None:
            axes = parse_sizes(config["cond_sizes"])["Z"]
            t_z = axes[0][1]
            shape = sizes_text(axes)
        code = f"{_tokens(config, t_z, d_z)}  # conditions, original units"
        return f"z {shape}", code
    if condition == "none":
        return "no condition", "None  # nothing to condition on"
    if isinstance(condition, str):
        return f"z {condition}", f"...  # {condition}"
    return "cond", "...  # what the network takes"


def _summary(config: Mapping[str, Any]) -> str:
    """The first paragraph: the one of the description, or what is sampled in how many calls."""
    most = max(config["steps"])
    calls = f"{most} network call{'s' if most > 1 else ''}"
    what = "trajectories" if _are_trajectories(config) else f"of shape ({_shape(config)})"
    said = config["description"].get("summary")
    return str(said or f"Samples {what} in {calls}; distilled with fastgen.")


def _example(config: Mapping[str, Any]) -> list[str]:
    """How the student is loaded and sampled, and what that needs."""
    shape = _shape(config)
    argument = ""
    needs = "Loading and sampling need torch and safetensors only"
    if not _is_built_in(config):
        argument = f", network={_network_name(config)}(...)"
        needs += f", and your class {_network_name(config)}"
    return [
        "```python",
        "import fastgen, torch",
        f'student = fastgen.load_student("path/to/this/folder"{argument})',
        f"z = {_condition(config)[1]}",
        f"x = student.sample(z, steps={max(config['steps'])})  # (1, {shape}); num_samples=K gives "
        f"(1, K, {shape})",
        "```",
        "",
        f"{needs}.",
    ]


def _facts(config: Mapping[str, Any], numbers: int) -> dict[str, str]:
    """The rows of the table, {title: what is the case}."""
    group = config["group"]
    facts = {
        "input -> output": f"{_condition(config)[0]} -> x (B, {_shape(config)}), original units",
        "network calls on offer": ", ".join(map(str, config["steps"])),
        "`t_list`": ", ".join(map(repr, config["t_list"])),
        "sampler": f"{config['sample_type']}: {_NOISE[config['sample_type']]}",
        "prediction": f"{config['pred_type']}, with t = 0 data and t = 1 noise",
        "network": f"{_network_name(config)}, {numbers:,} numbers in plain dense tensors",
        "group": f"{group}, folded into the weights" if group else "none declared",
    }
    if config.get("encoder") is not None:
        encoder = config["encoder"]
        facts["encoder of Z"] = (
            f"{encoder['name']}, called with {', '.join(encoder['columns'])}; with "
            "`load_student(..., encoder=)` z is these, else what it makes of them"
        )
    if config.get("masks"):
        facts["lengths"] = f"unequal, by {_masks(config)}, bool, True = real"
    if config.get("range") is not None:
        lo, hi = config["range"]
        facts["samples clamped to"] = f"{lo} to {hi}, the range of the data"
    if _are_trajectories(config):
        facts["waypoints per token"] = str(config["pack"])
    facts["trained as"] = _trained_as(config["parameterization"])
    guidance = _guidance(config["description"])
    if guidance is not None:
        facts["guidance trained in"] = guidance
    facts["written by"] = f"fastgen-distill {config['package_version']}"
    return facts


def _masks(config: Mapping[str, Any]) -> str:
    """The masks that the student may be sampled with, as arguments."""
    axes = {"mask": f"(B, {config['horizon'][0]})", "cond_mask": "(B, T_z)"}
    return " and ".join(f"`{name}=` {axes[name]}" for name in config["masks"])


def _trained_as(parameterization: Mapping[str, Any] | None) -> str:
    """The network's own path, prediction and clock, which loading turns into rectified flow."""
    flow = (parameterization or {}).get("rectified_flow")
    if flow is None:
        return "rectified flow"
    clock = f"data at {flow['data_at']} of its clock, times {flow['time_scale']:g}"
    return f"{flow['path']['name']} path, {flow['prediction']}, {clock}; load_student converts it"


def _guidance(description: Mapping[str, Any]) -> str | None:
    """The guidance of the teacher: its scale, and the rest where it is known; None without
    guidance."""
    scale = description.get("guidance_scale")
    interval = description.get("guidance_interval")
    rescale = description.get("guidance_rescale")
    source = description.get("guidance_null_cond")
    if scale is None:
        return None
    parts = [f"scale {scale}"]
    if isinstance(interval, Sequence) and len(interval) == 2:
        parts.append(f"for t from {interval[0]} to {interval[1]}")
    if rescale is not None:
        parts.append(f"rescaled by {rescale}")
    if source is not None:
        parts.append(f"away from {source}")
    return ", ".join(parts)


def _score_lines(scores: Any) -> list[str]:
    """A chapter with a table of {name: value} or {row: {name: value}}; nothing for anything
    else."""
    if not isinstance(scores, Mapping) or not scores:
        return []
    rows = {str(label): row for label, row in scores.items() if isinstance(row, Mapping)}
    if not rows:
        rows = {"": scores}
    # In the order in which they first come; a dict keeps it, a set doesn't.
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["## Scores", "", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, row in rows.items():
        values = [_number(row.get(name)) for name in names]
        lines.append(f"| {label} | {' | '.join(values)} |")
    return [*lines, ""]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""
