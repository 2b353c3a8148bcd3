"""Networks of torchvision whose inputs are lists, or whose outputs are dicts, fold as they are."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation

from repblocks.errors import RepblocksError
from repblocks.folding.fold import fold

UNTRAINED = {"weights": None, "weights_backbone": None}
SEGMENTATION = [
    "lraspp_mobilenet_v3_large",
    pytest.param("deeplabv3_mobilenet_v3_large", marks=pytest.mark.slow),
]


def built(build, **options) -> nn.Module:
    torch.manual_seed(0)
    return build(**UNTRAINED, **options).eval()


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_is_folded_and_verified(name):
    model = built(getattr(segmentation, name))
    report = fold(model, torch.rand(1, 3, 64, 64)).fold_report
    assert len(report.folded) > 40
    assert report.verification is not None
    assert not any(left.what == "BatchNorm2d" for left in report.left)


@pytest.mark.slow
def test_detection_is_folded_and_each_change_judged():
    model = built(detection.fasterrcnn_mobilenet_v3_large_320_fpn, min_size=64, max_size=96)
    report = fold(model, [torch.rand(3, 90, 120)]).fold_report
    assert len(report.folded) > 40
    assert "each change was judged on its own" in report.verification.note


class Batch(nn.Module):
    """Takes a dict of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.norm(self.conv(batch["image"])).relu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dict_of_inputs_is_verified(dtype):
    model = Batch().eval().to(dtype)
    report = fold(model, {"image": torch.randn(2, 3, 8, 8, dtype=dtype)}).fold_report
    assert report.verification.passed


class Sharing(nn.Sequential):
    """Its copies are the model itself."""

    def __deepcopy__(self, memo: dict) -> "Sharing":
        return self


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_a_changed_input_model_is_an_error():
    model = Sharing(Counting(), nn.Conv2d(3, 4, 3))
    with pytest.raises(
        RepblocksError, match=r"'0.calls' of the input model was changed .*\(1 of 3"
    ):
        fold(model, torch.randn(1, 3, 8, 8), verify=False)
