"""Networks of torchvision, whose code shares nothing with timm's: the same promises."""

import pytest
import torch
from family_nets import measure_statistics, open_closed_gains
from fold_promises import judge
from left_norms import false_reasons
from torchvision.models import get_model

TOLERANCE = 1e-9
UNINITIALISED = {"init_weights": False, "aux_logits": False}
#: Name, size of the images, options.
NETS = {
    "convnext_tiny": (64, {}),
    "densenet121": (64, {}),
    "efficientnet_b0": (64, {}),
    "googlenet": (64, UNINITIALISED),
    "inception_v3": (96, UNINITIALISED),
    "mnasnet0_5": (64, {}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "regnet_y_400mf": (64, {}),
    "resnet18": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "squeezenet1_1": (64, {}),
    "swin_t": (64, {}),
}
ALL = [pytest.param(n, marks=[] if n == "mobilenet_v3_small" else pytest.mark.slow) for n in NETS]


@pytest.mark.parametrize("name", ALL)
def test_a_network_of_torchvision_keeps_every_promise(name):
    size, options = NETS[name]
    torch.manual_seed(0)
    model = get_model(name, weights=None, num_classes=16, **options).double()
    open_closed_gains(model)
    images = torch.randn(6, 3, size, size, dtype=torch.float64)
    measure_statistics(model, images)
    judged = judge(model, images[:2], TOLERANCE, larger=32)
    false = false_reasons(model, images[:2], judged.report, judged.after["norms"])
    assert judged.signal > 1e-3, "the output hardly depends on the input: every fold would pass"
    assert judged.broken + false == []
    assert judged.after["norms"] == (62 if name == "densenet121" else 0)
