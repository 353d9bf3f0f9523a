"""Write an exported student for programs without fastgen.

    fastgen export runs/weave to=onnx [key=value ...]    # or runs/weave/student

In a checkout also `python recipes/export.py runs/weave ...`.

Keys, with their defaults (`--to onnx` means `to=onnx`):

    to            onnx: model.onnx, for onnxruntime (needs the extra `onnx`);
                  policy: the same in the layout of LeRobot's policy packages, with its own names;
                  pt2: model.pt2, for torch.export.load;
                  lerobot: a policy for the plugin in recipes/plugins/lerobot_policy_fastgen
    steps         network calls, fixed in the file; the most that the student is trained for
    weights       average or raw, of a run's student: average is what the run exported; raw ones are
                  written to student-raw, too. With it or alone, as in weights=raw,float16:
                  float32; float16, stored so and computed with in float32; int8 (not pt2),
                  quantised by onnxruntime, its error in manifest.json
    out           the student's folder with -onnx (-policy, ...) behind its name, a new folder
    z             file that holds some conditions as Z, for a network of your own whose folder
                  doesn't say what they look like
    execute       lerobot: actions of a chunk that are executed before the next one; all that come
    lead          lerobot: place in a chunk of the action of the newest observation; 0
    factory       package.module:callable that builds a network of your own
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.files import load_conditions
from ..export.exported import WEIGHTS
from ..export.lerobot import export_lerobot
from ..export.onnx_graph import export_onnx
from ..export.policy import export_policy
from ..export.pt2 import export_pt2
from ..jobs.command_line import parse_path_and_options, user_errors, whole_number
from ..jobs.raw_weights import WEIGHTS as SOURCES, student_folder, student_with
from ..jobs.sources import load_run_student
from ..jobs.symmetry import symmetry_of_run

__all__ = ["export", "main"]

_OPTIONS = ("to", "steps", "weights", "out", "z", "execute", "lead", "factory")
_FORMATS = {"onnx": export_onnx, "policy": export_policy, "pt2": export_pt2}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the export that the arguments ask for; None means ``sys.argv[1:]``."""
    with user_errors():
        folder, options = parse_path_and_options(__doc__, _OPTIONS, arguments)
        export(Path(folder), options)


def export(folder: Path, options: dict[str, str]) -> None:
    """Write the export, and print what was measured of it.

    Raises:
        ValueError: an option that can't be used, or a student that can't be exported.
    """
    kind = options.get("to")
    known = [*_FORMATS, "lerobot"]
    if kind not in known:
        raise ValueError(f"expected to=FORMAT, one of: {', '.join(known)}, got {kind}")
    steps = whole_number(options, "steps") if "steps" in options else None
    source, weights = _split_weights(options.get("weights"))
    factory = options.get("factory")
    folder = student_folder(folder) if source is None else student_with(source, folder, factory)
    if kind == "lerobot":
        _export_for_lerobot(folder, options, steps, weights)
        return
    suffix = kind if weights == "float32" else f"{kind}-{weights}"
    out = Path(options.get("out", folder.with_name(f"{folder.name}-{suffix}")))
    student = load_run_student(folder, factory)
    tokens = student.horizon[0]
    cond = load_conditions(options["z"], tokens=tokens) if "z" in options else None
    symmetry = symmetry_of_run(folder)
    manifest = _FORMATS[kind](student, out, steps=steps, weights=weights, cond=cond, **symmetry)
    manifest = manifest.get("fastgen", manifest)  # a policy package has ours as one section
    names = ", ".join(each["name"] for each in manifest["inputs"])
    size = manifest["file"]["bytes"]
    calls = manifest["steps"]
    output = manifest["outputs"][0]["name"]
    network = f"{calls} network call{'s' if calls > 1 else ''}"
    print(f"{out}: {names} -> {output} in {network}, {size:,} bytes")
    print(f"largest difference from the student: {manifest['error']['largest']:.2g} of a deviation")
    errors = (manifest["equivariance"] or {}).get("errors")
    if errors:
        print(f"largest equivariance error: {max(errors.values()):.2g}, of {len(errors)} elements")


def _split_weights(text: str | None) -> tuple[str | None, str]:
    """(whose weights, how they are stored) of such as "raw,float16"."""
    words = [] if text is None else text.split(",")
    sources = [word for word in words if word in SOURCES]
    stored = [word for word in words if word not in SOURCES]
    if len(sources) > 1 or len(stored) > 1:
        raise ValueError(
            f"expected weights={'|'.join(SOURCES)}, one of {', '.join(WEIGHTS)}, or both with a "
            f"comma, got {text}"
        )
    return (sources[0] if sources else None), (stored[0] if stored else "float32")


def _export_for_lerobot(
    folder: Path, options: dict[str, str], steps: int | None, weights: str
) -> None:
    """Write a policy for the plugin."""
    unused = [name for name in ("z", "factory") if name in options]
    if unused or weights != "float32":
        key = unused[0] if unused else f"weights={weights}"
        raise ValueError(f"to=lerobot takes the student's folder as it is: leave out {key}")
    out = Path(options.get("out", folder.with_name(f"{folder.name}-lerobot")))
    execute = whole_number(options, "execute") if "execute" in options else None
    lead = whole_number(options, "lead") if "lead" in options else 0
    config = export_lerobot(folder, out, steps=steps, execute=execute, lead=lead)
    print(f"{out}: {config['n_action_steps']} of {config['chunk_size']} actions are executed")
