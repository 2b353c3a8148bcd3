"""The page holds its figures, loads nothing, and is the same text for the same network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from deployment_nets import batches, images, trained_net
from test_deployment_pipeline import deploy_again
from torch import nn

from repblocks.deployment.page import render_page
from repblocks.deployment.report import DeploymentReport
from repblocks.folding.fold import fold
from repblocks.folding.switch import fold_blocks

Deployed = tuple[Path, DeploymentReport]
VOID = {"meta", "link", "img", "br", "hr", "input"}
#: A timing of each kind: exact, wrong, and the fastest.
TIMINGS = [
    dict(zip(("form", "runtime", "median_ms", "verified", "fastest"), values, strict=True))
    | {"threads": 1, "batch": 32, "p90_ms": 3.0, "quantized": False}
    for values in (
        ("training form", "PyTorch", 2.0, True, False),
        ("onnx", "ONNX Runtime", 0.5, True, True),
        ("bad <b>", "its loader", 0.25, False, False),
    )
]


class Page(HTMLParser):
    """What stands in a page: elements under the section that holds them, and their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.found: list[tuple[str, str, dict[str, str | None]]] = []
        self.texts = Counter[str]()
        self.section = ""
        self.feed(text)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        self.found.append((self.section, tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts[f"{self.section}: {data.strip()}"] += 1

    def count(self, section: str, tag: str, **attributes: str) -> int:
        return sum(
            where == section and name == tag and attributes.items() <= found.items()
            for where, name, found in self.found
        )


def without_measured(text: str) -> str:
    return re.sub(r'<section id="latency">.*?</section>', "", text, flags=re.DOTALL)


def as_written(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def in_a_browser(path: Path, *options: str) -> str:
    """Give a page as a browser has it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("There is no browser here: install chromium.")
    usual = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command = [browser, *usual, *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("opened", [as_written, in_a_browser])
def test_the_figures_are_found(deployed: Deployed, opened: Callable[[Path], str]) -> None:
    page = Page(opened(deployed[0] / "report.html"))
    assert [a["id"] for _, tag, a in page.found if tag == "section"] == [
        *("network", "block", "proof", "folded", "latency", "files"),
    ]
    # Two units and the head, in both forms; the pooling between them is a function.
    assert page.count("network", "svg", role="img") == 8
    assert page.count("block", "svg", role="img") == 2
    assert page.count("proof", "svg", role="img") == 1
    assert page.count("latency", "rect") == 2
    assert all(
        a.get("aria-label") for _, t, a in page.found if (t, a.get("role")) == ("svg", "img")
    )
    for words in ("proof: onnx", "folded: body.0", "files: model.pt2", "block: training form"):
        assert page.texts[words] == 1, words


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_is_no_wider_than_a_window(deployed: Deployed, tmp_path: Path, width: int) -> None:
    found = "this.contentDocument.documentElement.scrollWidth"
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe width="{width}" height="800" src="{(deployed[0] / "report.html").as_uri()}"'
        f' onload="this.title = {found}"></iframe>'
    )
    shown = in_a_browser(frame, "--allow-file-access-from-files", "--window-size=1300,900")
    (seen,) = re.findall(r'title="(\d+)"', shown)
    assert width - 30 < int(seen) <= width


def test_the_block_is_drawn_with_its_branches(deployed: Deployed) -> None:
    page = Page((deployed[0] / "report.html").read_text(encoding="utf-8"))
    # RepVGG: 3x3, 1x1 and identity, each with its BatchNorm, and one sum; then one convolution.
    assert page.texts["block: conv 3×3"] == 2
    assert page.texts["block: conv 1×1"] == 1
    assert page.texts["block: BN"] == 3
    assert page.texts["block: +"] == 1
    assert page.texts["block: ReLU"] == 2


def test_nothing_is_loaded_from_elsewhere(deployed: Deployed) -> None:
    text = (deployed[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for _, tag, _ in page.found}
    assert not {"src", "href", "onload", "style"} & {name for _, _, a in page.found for name in a}
    assert not re.search(r"url\(|@import|https?:", text)


def test_names_are_escaped_and_timings_marked(deployed: Deployed) -> None:
    model = trained_net()
    measured = {**deployed[1].measured, "latency": {"timings": TIMINGS, "notes": ["a <i> note"]}}
    report = replace(deployed[1], model={"name": "<script>x</script>"}, measured=measured)
    text = render_page(report, model, fold_blocks(model)[0], images()[:1])
    page = Page(text)
    assert page.count("", "script") == page.count("latency", "b") == page.count("latency", "i") == 0
    assert page.texts["latency: a <i> note"] == 1
    marks = [a["class"] for where, t, a in page.found if (where, t) == ("latency", "tr") and a]
    assert marks == ["plain", "best", "wrong"]
    assert [a["width"] for w, t, a in page.found if (w, t) == ("latency", "rect")] == [
        *("100.00%", "25.00%", "12.50%"),
    ]
    markdown = report.to_markdown()
    assert "| 1 | 32 | onnx | ONNX Runtime | 0.50 ms | 3.00 ms | fastest |" in markdown
    assert "0.25 ms | 3.00 ms | another function |" in markdown


def test_a_network_folded_as_a_whole_shows_what_is_left(deployed: Deployed) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(body, nn.BatchNorm2d(4), nn.Sigmoid(), nn.BatchNorm2d(4))
    with torch.no_grad():
        model(torch.randn(8, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    folded = fold(model.eval(), x)
    report = replace(deployed[1], blocks=(), layers=(), fold=folded.fold_report)
    page = Page(render_page(report, model, folded, x))
    assert page.texts["folded: Folded (2)"] == 1
    assert page.texts["folded: Left as it is (1)"] == 1
    assert page.count("block", "svg", role="img") == 2


def test_the_same_network_gives_the_same_text_in_another_process(tmp_path: Path) -> None:
    deploy_again(tmp_path / "here", validation=batches())
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_deployment_pipeline import deploy_again, batches\n"
        "deploy_again(sys.argv[2], validation=batches())"
    )
    arguments = [str(Path(__file__).parent), str(tmp_path / "there")]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)
    here, there = (
        without_measured((tmp_path / name / "report.html").read_text(encoding="utf-8"))
        for name in ("here", "there")
    )
    assert "network" in here
    assert here == there
