"""What a drawing is made of: the steps that ran, the units they stand in, and places for boxes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
from torch import Tensor, nn

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks.blocks import create_block
from repblocks.deployment.page.layering import lay_out
from repblocks.deployment.page.recording import OUTSIDE, record
from repblocks.deployment.page.units import repeats_of, units_of


class Residual(nn.Module):
    """A convolution beside its input, then in-place and idle layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += x
        return self.drop(self.act(y)).flatten(2).unflatten(2, (6, 6)) * x.mean((2, 3), keepdim=True)


def test_steps_are_those_that_ran() -> None:
    steps = record(Residual().eval(), torch.randn(1, 4, 6, 6))
    assert [(step.path, step.label, step.inputs) for step in steps] == [
        ("conv", "conv 3×3", (OUTSIDE,)),
        ("", "+", (0, OUTSIDE)),
        ("act", "ReLU", (1,)),
        ("", "mean", (OUTSIDE,)),
        ("", "×", (2, 3)),
    ]
    assert steps[0].detail == "4 → 4"
    assert steps[-1].shape == (4, 6, 6)


@pytest.mark.parametrize(("block", "num_summed"), [("mobileone", 6), ("repvgg", 3), ("acb", 3)])
def test_a_sum_of_many_branches_is_one_step(block: str, num_summed: int) -> None:
    model = create_block(block, 4, 4, 3).eval()
    steps = record(model, torch.randn(1, 4, 6, 6))
    sums = [step for step in steps if step.label == "+"]
    assert [len(step.inputs) for step in sums] == [num_summed]
    assert model.training is False
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_units_repeat_alone_or_in_turns() -> None:
    model = timm.create_model("repblocks_mobileone_s0", num_classes=10).eval()
    units = units_of(model, record(model, torch.randn(1, 3, 32, 32)))
    repeats = repeats_of(units)
    assert [unit.path for unit in units[:3]] == ["stem", "stages.0.0", "stages.0.1"]
    assert sum(len(repeat.units) * repeat.count for repeat in repeats) == len(units)
    # Stage 1 has ten blocks of two parts, of which the first differs.
    assert (7, "stages.1.15") in [(r.count, r.last) for r in repeats if len(r.units) == 2]
    assert units[-1].kind == "ClassifierHead"


def test_units_of_another_form_are_the_known_ones() -> None:
    row = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(3)))
    steps = record(row.eval(), torch.randn(1, 3, 4, 4))
    assert [unit.path for unit in units_of(row, steps)] == ["0", "1", "2"]
    nested = nn.Sequential(row)
    steps = record(nested.eval(), torch.randn(1, 3, 4, 4))
    assert [unit.path for unit in units_of(nested, steps)] == ["0"]
    assert [unit.path for unit in units_of(nested, steps, {"0.1"})] == ["0.0", "0.1", "0.2"]


def test_boxes_keep_apart_and_lines_go_down() -> None:
    # The input; two branches of two; one of one; a bare one; their sum; the output.
    layout = lay_out([[], [0], [1], [0], [3], [0], [2, 4, 5, 0], [6]])
    assert [row for _, row in layout.places] == [0, 1, 2, 1, 2, 1, 3, 4]
    for row in range(layout.rows):
        columns = sorted(
            {p for edge in layout.edges for p in edge if p[1] == row}
            | {p for p in layout.places if p[1] == row}
        )
        assert all(b[0] - a[0] >= 1 - 1e-9 for a, b in pairwise(columns))
    assert all(
        [row for _, row in edge] == list(range(edge[0][1], edge[-1][1] + 1))
        for edge in layout.edges
    )
    assert min(column for edge in layout.edges for column, _ in edge) == 0
    assert layout.columns == 4
