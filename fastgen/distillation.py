"""Distillation: the job behind recipes/distill.py."""

from .jobs.distillation import distill as distill
