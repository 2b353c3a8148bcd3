"""``deploy.py check ARTIFACT`` prints one table and ends with 0 or 2."""

import sys

import pytest
import torch
from torch import nn

from repblocks.cli import deploy as cli
from repblocks.cli.artifact_check import check_main
from repblocks.deployment.pipeline import deploy


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    output = tmp_path_factory.mktemp("deployed") / "artifact"
    deploy(
        *(model, model),
        output=output,
        description={"preprocessing": {"input_size": [3, 6, 6]}},
        example_input=torch.randn(4, 3, 6, 6),
    )
    return output


def test_a_good_artifact(artifact, capsys):
    assert check_main([str(artifact)]) == 0
    out = capsys.readouterr().out
    assert "9 passed, 0 failed, 2 skipped" in out
    assert "differs from onnx by" in out


def test_a_damaged_one_through_the_command(artifact, capsys, monkeypatch):
    path = artifact / "report.md"
    before = path.read_bytes()
    path.write_bytes(before + b"x")
    monkeypatch.setattr(sys, "argv", ["deploy.py", "check", str(artifact), "trust=true"])
    with pytest.raises(SystemExit) as error:
        cli.main()
    path.write_bytes(before)
    assert error.value.code == 2
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "report.md failed" in out
    assert "is not the file that was written" in out
    assert "8 passed, 1 failed, 2 skipped" in out


def test_mistakes(tmp_path, capsys):
    assert check_main([str(tmp_path / "none")]) == 2
    message = f"There is no folder {tmp_path / 'none'}. Give the folder that deploy.py wrote.\n"
    assert capsys.readouterr().err == message
    with pytest.raises(SystemExit, match="2"):
        check_main([str(tmp_path), "trust=yes"])
