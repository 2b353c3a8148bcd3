"""A run that leaves no file leaves no folder, and never a folder of the user's goes."""

import os
from pathlib import Path

import pytest

from repblocks.cli.folders import newest_run_checkpoint, remove_empty, run_folder, run_of
from repblocks.errors import CheckpointError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_empty_run_is_removed_with_the_folders_made_for_it(here):
    run = here / "outputs/train/x/now"
    (run / "checkpoints").mkdir(parents=True)
    remove_empty(run)
    assert not (here / "outputs").exists()


def test_a_file_or_another_run_keeps_the_folder(here):
    for name in ("a/checkpoints", "b"):
        (here / "outputs" / name).mkdir(parents=True)
    (here / "outputs/a/checkpoints/last.ckpt").touch()
    remove_empty(here / "outputs/a")
    remove_empty(here / "outputs/b")
    assert [path.name for path in (here / "outputs").iterdir()] == ["a"]


def test_the_working_folder_and_those_above_stay(here):
    (here / "empty").mkdir()
    remove_empty(here)
    remove_empty(here.parent)
    assert (here / "empty").is_dir()


@pytest.mark.usefixtures("here")
def test_a_folder_elsewhere_is_removed_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere") / "above" / "run"
    folder.mkdir(parents=True)
    remove_empty(folder)
    assert not folder.exists()
    assert folder.parent.is_dir()


def test_a_continued_run_goes_on_in_its_folder(here):
    checkpoint = here / "outputs/old/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (here / "outputs/new").mkdir()
    with run_folder(None, str(here / "outputs/new"), checkpoint) as output:
        assert output == here / "outputs/old"
    assert not (here / "outputs/new").exists()
    with run_folder("chosen", str(here / "outputs/new"), checkpoint) as output:
        assert str(output) == "chosen"


def test_a_checkpoint_named_from_its_own_folder_belongs_to_its_run(here, monkeypatch):
    (here / "run/checkpoints").mkdir(parents=True)
    monkeypatch.chdir(here / "run/checkpoints")
    assert run_of(Path("last.ckpt")) == here / "run"
    assert run_of(here / "lone.ckpt") is None


def test_the_users_empty_folder_stays(here):
    (here / "mine").mkdir()
    with run_folder("mine", str(here / "outputs/x"), None):
        pass
    assert (here / "mine").is_dir()


def test_the_newest_run_gives_its_best_checkpoint(here):
    folders = (here / "outputs", here / "multirun")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*outputs or .*multirun. Train "):
        newest_run_checkpoint(*folders)
    for age, name in enumerate(("new/last", "new/best", "old/best", "step/last")):
        path = here / "outputs" / name.replace("/", "/checkpoints/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".ckpt").touch()
        os.utime(path.with_suffix(".ckpt"), (1000 - age, 1000 - age))
    assert newest_run_checkpoint(*folders) == here / "outputs/new/checkpoints/best.ckpt"
    of_a_sweep = here / "multirun/train/now/0/checkpoints/last.ckpt"
    of_a_sweep.parent.mkdir(parents=True)
    of_a_sweep.touch()
    assert newest_run_checkpoint(*folders) == of_a_sweep
