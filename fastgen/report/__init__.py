"""Reports: the pictures, tables and numbers of a run."""

from .page import write_report as write_report
from .styles import StageStyle as StageStyle
from .tables import format_table as format_table
