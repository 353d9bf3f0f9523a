"""Pretraining: the job behind recipes/train_teacher.py."""

from .jobs.pretraining import train_teacher as train_teacher
