"""Exports: a student in a folder, and back."""

from .folders import (
    export_student as export_student,
    has_custom_network as has_custom_network,
    load_student as load_student,
)
from .lerobot import export_lerobot as export_lerobot
from .networks import load_network as load_network, save_network as save_network
from .onnx_graph import export_onnx as export_onnx
from .policy import export_policy as export_policy
from .pt2 import export_pt2 as export_pt2
from .student import Student as Student
