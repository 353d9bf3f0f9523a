"""Sample a student that recipes/export.py has written: numpy and onnxruntime alone.

python recipes/sample_onnx.py runs/weave/student-onnx
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
rng = np.random.default_rng(0)
sizes = {"B": 16}  # samples; other axes with a name have limits
given = {}
for each in manifest["inputs"]:
    most = {axis: limits[1] for axis, limits in each.get("limits", {}).items()}
    shape = [(sizes | most)[axis] if isinstance(axis, str) else axis for axis in each["shape"]]
    drawn = rng.standard_normal(shape) if each["name"].startswith("noise") else np.ones(shape)
    given[each["name"]] = drawn.astype(each["dtype"])  # put your conditions in place of the ones
x = np.asarray(session.run(["x"], given)[0])
print(x.shape, x.mean(axis=0))
