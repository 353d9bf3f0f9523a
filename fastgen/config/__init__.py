"""Configs: every key that a user can set."""

from .dmd import DMDConfig as DMDConfig
from .groups import EMAConfig as EMAConfig, SampleTimestepConfig as SampleTimestepConfig
from .matching import MatchingConfig as MatchingConfig
from .schemas import (
    DataConfig as DataConfig,
    DistillConfig as DistillConfig,
    KeywordsConfig as KeywordsConfig,
    ModelConfig as ModelConfig,
    NormalizeConfig as NormalizeConfig,
    SymmetryConfig as SymmetryConfig,
    TeacherConfig as TeacherConfig,
    TrainTeacherConfig as TrainTeacherConfig,
)
from .student import StudentConfig as StudentConfig
from .training import (
    DistillTrainConfig as DistillTrainConfig,
    LoopConfig as LoopConfig,
    OptimizerConfig as OptimizerConfig,
    TeacherTrainConfig as TeacherTrainConfig,
)
