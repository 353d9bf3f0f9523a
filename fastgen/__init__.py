"""fastgen: few-step students from diffusion and flow-matching teachers, by distribution matching
(DMD2).

Importing the package loads torch and safetensors only; what needs more is imported where it is
used.
"""

from ._core.launcher import AT_START as AT_START
from .export.folders import export_student as export_student, load_student as load_student

__all__ = ["export_student", "load_student"]
__version__ = "0.1.0"
