"""Data: training sets, and tasks that score what is trained on them."""

from .samples import SampleData as SampleData, SampleTask as SampleTask
from .task import (
    Data as Data,
    Task as Task,
    build_data as build_data,
    build_task as build_task,
)
from .trajectories import TrajectoryData as TrajectoryData
