"""A thousand damaged files of each kind of saved teacher, and of the statistics beside them."""

from __future__ import annotations

import pytest

from support.damaged import check_damaged
from support.packages import installed

pytestmark = pytest.mark.slow

NUMBER = 1000
LEROBOT = ["stats", "policy limits", "policy moments", "policy", "flow policy"]


@pytest.mark.parametrize("kind", LEROBOT)
def test_damaged_files_of_lerobot_are_errors_or_numbers(tmp_path, kind):
    check_damaged("hostile_saved.py", tmp_path / "w", NUMBER, kind)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_damaged_files_of_diffusers_are_errors_or_numbers(tmp_path, kind):
    installed("diffusers", since=(3, 11))
    check_damaged("hostile_saved.py", tmp_path / "w", NUMBER, kind)
