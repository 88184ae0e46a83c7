"""What was passed and answered: after a restart, in other notebooks, and where nothing is known."""

import json

import pytest

from ntk.notebook import progress
from ntk.notebook.exercises import check, score

NOBODY_SAYS = ("Since the last restart: {} of {} exercises passed, "
               "{} of {} questions answered right.\n")
SO_FAR = NOBODY_SAYS.replace("Since the last restart", "So far")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(progress, "kept", {})
    return tmp_path


@pytest.fixture
def opened(monkeypatch):
    "opened(name): a kernel has just started for this notebook."
    def opened(name):
        monkeypatch.setenv("JPY_SESSION_NAME", f"/home/of/someone/{name}.ipynb")
        monkeypatch.setattr(progress, "kept", {})

    return opened


@pytest.fixture
def said(capsys):
    def said():
        capsys.readouterr()
        score()
        return capsys.readouterr().out

    return said


def test_a_restart_loses_nothing(opened, said):
    for _ in range(2):
        opened("03_ntk")
        progress.note("questions", "03.rank", True)
        check(1, 1)
        check(1, 2)
        assert said() == SO_FAR.format(1, 2, 1, 1)
    opened("03_ntk")
    assert said() == SO_FAR.format(1, 2, 1, 1)


def test_what_is_run_again_without_an_answer_stays_passed(opened, said):
    opened("03_ntk")
    for answer in (..., 2, ...):
        check(answer, 1 + 1)
    assert said() == SO_FAR.format(1, 1, 0, 0)
    check(..., 2 + 2)
    progress.note("questions", "03.rank", False, attempted=False)
    assert said() == SO_FAR.format(1, 2, 0, 1)


def test_a_wrong_answer_counts_also_after_a_right_one(opened, said):
    opened("03_ntk")
    progress.note("questions", "03.rank", True)
    progress.note("questions", "03.rank", False)
    assert said() == SO_FAR.format(0, 0, 0, 1)


def test_notebooks_are_kept_apart_and_the_first_lists_all(opened, said, folder):
    for name in ("00_start_here", "01_model", "02_gradients"):
        (folder / f"{name}.ipynb").touch()
    opened("01_model")
    check(1, 1)
    assert said() == SO_FAR.format(1, 1, 0, 0)
    opened("00_start_here")
    progress.note("questions", "00.brightest", True)
    assert said() == SO_FAR.format(0, 0, 1, 1) + (
        "00_start_here          0 of 0 exercises passed, 1 of 1 questions answered right\n"
        "01_model               1 of 1 exercises passed, 0 of 0 questions answered right\n"
        "02_gradients           not begun\n")


def test_two_kernels_that_write_do_not_undo_each_other(opened, said, monkeypatch):
    opened("01_model")
    check(1, 1)
    one = progress.kept
    opened("02_gradients")
    check(1, 1)
    monkeypatch.setattr(progress, "kept", one)
    monkeypatch.setenv("JPY_SESSION_NAME", "01_model.ipynb")
    check(2, 2)
    assert {name: len(entry["exercises"]) for name, entry in progress.read().items()} == {
        "01_model": 2, "02_gradients": 1}


def test_without_a_name_nothing_is_written(said, folder):
    check(1, 1)
    assert said() == NOBODY_SAYS.format(1, 1, 0, 0) and not [*folder.iterdir()]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"03_ntk": 3}', '{"03_ntk": {}}',
                                  '{"03_ntk": {"exercises": 1, "questions": {}}}', "\x00"])
def test_a_file_that_is_none_of_ours_is_written_anew(text, opened, said, folder):
    (folder / progress.FILE).write_text(text)
    opened("03_ntk")
    check(1, 1)
    assert said() == SO_FAR.format(1, 1, 0, 0)
    assert [*json.loads((folder / progress.FILE).read_text())] == ["03_ntk"]


def test_a_folder_that_cannot_be_written_to_is_left_alone(opened, said, monkeypatch):
    monkeypatch.setattr(progress, "FILE", progress.Path("no/such/folder/file.json"))
    opened("03_ntk")
    check(1, 1)
    assert said() == SO_FAR.format(1, 1, 0, 0)


def test_a_deleted_file_starts_afresh(opened, said, folder):
    opened("03_ntk")
    check(1, 1)
    (folder / progress.FILE).unlink()
    opened("03_ntk")
    assert said() == SO_FAR.format(0, 0, 0, 0)
