"""Reports: the pictures, tables and numbers of a run."""

from .page import write_report as write_report
