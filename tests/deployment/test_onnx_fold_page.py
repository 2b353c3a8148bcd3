"""The page of a folded ONNX file shows what was folded, what was left and why, and the errors."""

import json
import re

import numpy as np
import pytest
from deployment.onnx_graphs import Graph, repvgg_unit
from deployment.test_report_page import Page, as_written, in_a_browser

from repblocks.deployment.onnx_fold import fold_onnx


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two blocks, a second input, a product that stays as it is, and names that are markup."""
    folder = tmp_path_factory.mktemp("page")
    graph = Graph()
    x = repvgg_unit(graph, graph.input("N", 4, 6, 6), 4)
    x = repvgg_unit(graph, graph.add("Add", x, graph.input("N", 4, 6, 6, name="y")), 4)
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    shift = graph.constant(np.ones((2, 1), np.float32))
    graph.output(graph.add("Gemm", x, graph.weight(4, 3), shift), rank=2)
    graph.nodes[-1].name = "<b>gemm"
    shapes = {"x": [2, 4, 6, 6], "y": [2, 4, 6, 6]}
    fold_onnx(graph.save(folder / "a<i>.onnx"), folder / "out", shapes)
    return folder / "out"


@pytest.mark.parametrize("opened", [as_written, in_a_browser])
def test_the_figures_are_found(folder, opened):
    text = opened(folder / "report.html")
    page = Page(text)
    assert [a["id"] for _, tag, a in page.found if tag == "section"] == [
        *("network", "block", "proof", "folded", "nodes", "files"),
    ]
    assert page.count("network", "figure", **{"class": "network"}) == 2
    assert page.count("network", "svg", role="img") >= 2
    assert page.count("block", "svg", role="img") == 2
    assert page.count("proof", "svg", role="img") == 1
    for words in (
        *("folded: Folded (2)", "folded: Not looked into (1)", "folded: <b>gemm"),
        *("folded: What it adds is not one number a channel.", "files: model.onnx"),
        *("nodes: BatchNormalization", "nodes: multiply-adds", "block: training form"),
    ):
        assert page.texts[words] >= 1, words
    assert page.count("folded", "b") == page.count("", "i") == 0
    assert not {"script", "link", "img", "iframe"} & {tag for _, tag, _ in page.found}
    assert not re.search(r"url\(|@import|https?:", text)


def test_each_fold_has_its_error(folder):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    errors = {one["path"]: one["rms_rel"] for one in report["layers"]}
    assert len(report["fold"]["folded"]) == 2
    # Each convolution gives what the last sum of its block gave.
    assert list(errors) == ["Add_6", "Relu_7", "Add_8", "Add_15", *list(errors)[4:]]
    kinds = [one["kind"] for one in report["layers"]]
    assert (kinds[:2], kinds[-1]) == (["Add", "Relu"], "Gemm")
    assert all(0 < error < 1e-5 for error in errors.values())
    assert report["sizes"]["model.onnx"] == (folder / "model.onnx").stat().st_size
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for words in ("Error of each layer", "| model.onnx |", "| <b>gemm | Gemm | What it adds"):
        assert words in markdown


def test_a_region_of_a_long_graph_is_opened(tmp_path):
    graph = Graph()
    x = graph.input("N", 4, 6, 6)
    for _ in range(6):
        x = repvgg_unit(graph, x, 4)
    graph.output(graph.add("Flatten", graph.add("GlobalAveragePool", x)), rank=2)
    fold_onnx(graph.save(tmp_path / "a.onnx"), tmp_path / "out", {"x": [2, 4, 6, 6]})
    page = Page(as_written(tmp_path / "out/report.html"))
    assert page.count("block", "svg", role="img") == 2
    assert page.texts["block: training form"] == page.texts["block: 7 steps"] == 1
    assert page.texts["block: deployed form"] == page.texts["block: 1 steps"] == 1
