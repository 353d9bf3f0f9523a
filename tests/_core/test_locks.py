"""A folder is held by one at a time, and nothing is left in it."""

from __future__ import annotations

import threading

import pytest

from fastgen._core.locks import locked_folder


def test_a_second_one_waits_for_the_first(tmp_path):
    inside = threading.Event()

    def enter() -> None:
        with locked_folder(tmp_path):
            inside.set()

    second = threading.Thread(target=enter)
    with locked_folder(tmp_path):
        second.start()
        assert not inside.wait(0.2)
    assert inside.wait(60)
    second.join()
    assert not list(tmp_path.iterdir())


def test_an_error_inside_lets_the_next_one_in(tmp_path):
    with pytest.raises(KeyError), locked_folder(tmp_path):
        raise KeyError
    with locked_folder(tmp_path):
        pass


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError), locked_folder(tmp_path / "none"):
        pass
