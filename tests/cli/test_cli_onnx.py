"""``deploy.py onnx=FILE``: what it writes, shows, and refuses."""

import json
import sys

import onnx
import pytest
from deployment.onnx_graphs import Graph, repvgg_unit

from repblocks.cli import deploy


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in a folder with a file; gives its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    graph = Graph()
    graph.output(repvgg_unit(graph, graph.input("N", 4, "H", "W"), 4))
    graph.save(tmp_path / "net (1).onnx")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["repblocks", *arguments])
        code = 0
        try:
            deploy.main()
        except SystemExit as error:
            code = error.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


FILE, SHAPE = "onnx=net (1).onnx", "onnx_shape=[2,4,6,6]"


def test_it_writes_a_folder(run, tmp_path):
    code, text = run(FILE, SHAPE)
    assert code == 0, text
    folder = tmp_path / "outputs" / "deploy" / "net (1)"
    report = json.loads((folder / "report.json").read_text())
    assert report["after"]["nodes"] == {"Conv": 1, "Relu": 1}
    assert "| nodes | 8 | 2 |" in (folder / "report.md").read_text()
    assert len(onnx.load(folder / "model.onnx").graph.node) == 2
    assert run(FILE, SHAPE)[0] == 0  # a folder that it wrote is replaced


def test_it_shows_the_plan_alone(run, tmp_path):
    code, text = run(FILE, SHAPE, "explain=true")
    assert code == 0, text
    assert "multiply-adds: " in text
    assert [path.name for path in tmp_path.iterdir()] == ["net (1).onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([FILE], "has free sizes: [?, 4, ?, ?]"),
        ([FILE, SHAPE, "ckpt_path=a.ckpt"], "leave out ckpt_path, which belong to a"),
        ([FILE, SHAPE, "latency=true"], "leave out latency, which"),
        ([FILE, SHAPE, "formats=[onxx]"], "leave out formats, which"),
        ([FILE, SHAPE, "block=acb", "export=int8"], "leave out block, export, which"),
        ([FILE, SHAPE, "onnx_export.pixels=true"], "leave out onnx_export.pixels, which"),
        ([FILE, "onnx_shape=large"], "onnx_shape must be a list or a group of keys or null"),
        (["onnx=none.onnx"], "There is no ONNX file at none.onnx."),
        ([SHAPE], "onnx_shape says how to run onnx=FILE"),
        ([FILE, SHAPE, "output=net (1).onnx"], "output exists and is not an artifact"),
    ],
)
def test_mistakes_end_in_one_message_and_leave_nothing(run, tmp_path, arguments, message):
    code, text = run(*arguments)
    assert code == 2
    assert message in text
    assert [path.name for path in tmp_path.iterdir()] == ["net (1).onnx"]
