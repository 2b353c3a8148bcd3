"""The artifact's folder appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from repblocks.deployment.artifact import check_output, staged, write_json
from repblocks.deployment.manifest import describe_files
from repblocks.errors import ConfigurationError


def write(output: Path, text: str = "new") -> None:
    with staged(output) as folder:
        for name in ("config.json", "report.json"):
            (folder / name).write_text(text, encoding="utf-8")


def test_appears_at_the_end_with_ordinary_permissions(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "artifact"
    with staged(output) as folder:
        assert not output.exists()
        assert folder.parent == output.parent
        (folder / "file").write_text("x", encoding="utf-8")
    assert [p.name for p in output.parent.iterdir()] == ["artifact"]
    assert [p.name for p in output.iterdir()] == ["file"]
    (tmp_path / "ordinary").mkdir()
    assert output.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staged(tmp_path / "deep" / "artifact") as folder:
            (folder / "file").write_text("x", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_replaces_an_artifact_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    write(output, "old")
    with pytest.raises(OSError, match="disk"), staged(output):
        raise OSError("disk is full")
    assert (output / "report.json").read_text(encoding="utf-8") == "old"
    write(output)
    assert (output / "report.json").read_text(encoding="utf-8") == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_a_link_stays_a_link_to_the_new_artifact(tmp_path: Path) -> None:
    write(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    write(tmp_path / "current")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v1"]
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "v1/report.json").read_text() == "new"


def test_old_artifact_comes_back_if_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "artifact"
    write(output, "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        write(output)
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]
    assert (output / "report.json").read_text(encoding="utf-8") == "old"


def test_fills_an_empty_folder_but_never_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x", encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in ("photos", "file"):
        message = f"output exists and is not an artifact: {tmp_path / name}"
        with pytest.raises(ConfigurationError, match=message):
            write(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "photos"]
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


@pytest.mark.parametrize("manifest", ["whole", "damaged", "none"])
def test_files_of_the_user_are_never_removed(tmp_path: Path, manifest: str) -> None:
    output = tmp_path / "artifact"
    write(output, "old")
    if manifest != "none":
        content = describe_files(output, ()) if manifest == "whole" else {}
        write_json(output / "manifest.json", content)
    check_output(output)
    (output / "notes").mkdir()
    (output / "notes/thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="would be lost: .* holds notes/thesis.txt. Move"):
        write(output)
    assert (output / "notes/thesis.txt").read_text(encoding="utf-8") == "mine"
    (output / "notes/thesis.txt").unlink()
    with pytest.raises(ConfigurationError, match="holds late.txt"), staged(output):
        (output / "late.txt").write_text("mine", encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]
    with pytest.raises(ConfigurationError, match="late.txt lies in the output"):
        check_output(output, output / "late.txt")


def test_unwritable_output_is_an_error_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    outputs = [tmp_path / "file" / "artifact", Path("/proc/repblocks/artifact")]
    if os.getuid():
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        outputs.append(locked / "artifact")
    for output in outputs:
        with (
            pytest.raises(ConfigurationError, match=f"output cannot be written: {output}"),
            staged(output),
        ):
            pytest.fail("The body ran.")


@pytest.mark.parametrize("kind", ["loop", "nul", "long"])
def test_an_output_that_is_no_path_is_one_message(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    output = {"loop": tmp_path / "a/x", "nul": tmp_path / "a\0b", "long": tmp_path / ("x" * 5000)}
    for check in (check_output, write):
        with pytest.raises(ConfigurationError, match=r"output is no path .* \(.+\)\. Choose"):
            check(output[kind])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_json_holds_plain_values_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config.json can hold plain values .* PosixPath"):
        write_json(tmp_path / "config.json", {"root": tmp_path})
    message = r"finite float, bool, None\): a\[0\]\.b is nan, c is inf\."
    with pytest.raises(ConfigurationError, match=message):
        write_json(tmp_path / "config.json", {"a": [{"b": float("nan")}], "c": float("inf")})
    with pytest.raises(ConfigurationError, match="surrogates not allowed"):
        write_json(tmp_path / "config.json", {"a": "\ud800"})
    assert list(tmp_path.iterdir()) == []
