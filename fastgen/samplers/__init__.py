"""Samplers: the teacher's, the few-step student's, and flow matching on its own clock."""

from .diffusion import (
    BaseDiffusion as BaseDiffusion,
    FlowMatching as FlowMatching,
    StepFn as StepFn,
)
from .student import (
    SAMPLE_TYPES as SAMPLE_TYPES,
    check_student as check_student,
    sample_student as sample_student,
    served_steps as served_steps,
    unroll as unroll,
)
from .teacher import (
    TRUSTED_NOISE_TIME as TRUSTED_NOISE_TIME,
    sample_teacher as sample_teacher,
    teacher_grid as teacher_grid,
    teacher_step as teacher_step,
    teacher_velocity as teacher_velocity,
)
