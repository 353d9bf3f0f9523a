"""Damaged files of each kind of saved teacher, and of the statistics beside them.

`support/hostile_saved.py FOLDER 1000` damages a thousand of each; here networks, which take longer
to build, are damaged less often.
"""

from __future__ import annotations

import pytest

from support.damaged import check_damaged
from support.packages import installed

pytestmark = pytest.mark.slow

STATISTICS = ["stats", "policy limits", "policy moments"]
OF_NUMBERS = 1000
OF_NETWORKS = 200


@pytest.mark.parametrize("kind", STATISTICS)
def test_damaged_statistics_are_errors_or_numbers(tmp_path, kind):
    check_damaged("hostile_saved.py", tmp_path / "w", OF_NUMBERS, kind)


@pytest.mark.parametrize("kind", ["policy", "flow policy"])
def test_damaged_files_of_lerobot_are_errors_or_numbers(tmp_path, kind):
    check_damaged("hostile_saved.py", tmp_path / "w", OF_NETWORKS, kind)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_damaged_files_of_diffusers_are_errors_or_numbers(tmp_path, kind):
    installed("diffusers", since=(3, 11))
    check_damaged("hostile_saved.py", tmp_path / "w", OF_NETWORKS, kind)
