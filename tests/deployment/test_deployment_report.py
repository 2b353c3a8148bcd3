"""Counting, comparing predictions, and the report's three faces."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from repblocks.deployment.accuracy import Agreement, compare_predictions
from repblocks.deployment.cost import Cost, count_cost, measure_latency
from repblocks.deployment.report import DeploymentReport

Deployed = tuple[Path, DeploymentReport]


def test_counts_groups_strides_and_linear_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, (1, 5), padding=(0, 2), groups=8, bias=False),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 3),
    ).eval()
    convolutions = 16 * (8 * 2 * 9) + 16 * (8 * 5)
    parameters = (8 * 2 * 9 + 8) + 16 + 8 * 5 + (128 * 3 + 3)
    norm = 8 * 16
    found = count_cost(model, torch.zeros(1, 4, 8, 8))
    assert found == Cost(parameters=parameters, macs=convolutions + norm + 128 * 3, convolutions=2)


def test_latency_orders_a_small_and_a_large_network() -> None:
    small, large = nn.Conv2d(16, 1, 1), nn.Sequential(*(nn.Conv2d(16, 16, 3) for _ in range(6)))
    found = measure_latency([large, small], torch.zeros(4, 16, 32, 32), runs=3)
    assert found[0] > found[1] > 0


def test_counts_hits_and_differing_predictions() -> None:
    scores = torch.eye(6) * 2 + torch.arange(6) / 10  # The diagonal wins, then the larger index.
    other = scores.clone()
    other[0] = torch.tensor([0.0, 1, 2, 3, 4, 5])
    forms = [lambda rows, table=table: table[rows] for table in (scores, other)]
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    rows = torch.arange(6)
    found = compare_predictions(*forms, [(rows[:4], targets[:4]), (rows[4:], targets[4:])])
    # Row 5 has class 0 on the last place of six; so has row 0 in the other form.
    assert found == Agreement(6, 1, 5 / 6, 5 / 6, 4 / 6, 4 / 6)
    assert compare_predictions(*forms, []) is None


def test_top5_of_fewer_than_five_classes() -> None:
    model = nn.Identity()
    found = compare_predictions(model, model, [(torch.eye(3), torch.tensor([0, 1, 0]))])
    assert found == Agreement(3, 0, 2 / 3, 1.0, 2 / 3, 1.0)


def test_markdown_and_table_show_the_numbers(deployed: Deployed) -> None:
    report = deployed[1]
    page = report.to_markdown()
    assert (deployed[0] / "report.md").read_text(encoding="utf-8") == page
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.to_table())
    terminal = console.export_text()
    numbers = [f"{form.parameters:,}" for form in (report.training_form, report.deployed_form)]
    for text in (*numbers, "0 of 48 validation images", "model.onnx", "top-5", "latency, batch 4"):
        assert text in page
        assert text in terminal
    assert "| body.1 | RepVGGBlock |" in page
    assert "| head | Linear | it has no branches |" in page


@pytest.mark.parametrize("face", ["to_markdown", "to_table"])
def test_missing_validation_data_is_said(deployed: Deployed, face: str) -> None:
    report = replace(deployed[1], agreement=None, note="no data at data/x", blocks=())
    shown = getattr(report, face)()
    text = shown if isinstance(shown, str) else str(shown.caption)
    assert "No validation images were compared: no data at data/x." in text
    assert "top-1" not in text
