"""The float network that is handed to a quantizer: equalised and with corrected biases."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from repblocks.deployment.quantization.bias_correction import correct_biases_
from repblocks.deployment.quantization.equalization import equalize_
from repblocks.deployment.quantization.options import QuantizationConfig


def prepared(model: nn.Module, batches: Sequence[Tensor], config: QuantizationConfig) -> nn.Module:
    """Prepare a copy of a network.

    Args:
        model: The deployed network, in evaluation mode.
        batches: Calibration images ``(N, C, H, W)``.
        config: What is to be done.
    """
    twin = copy.deepcopy(model)
    if config.equalize != "none":
        equalize_(twin, batches, config.equalize)
    if config.correct_bias:
        correct_biases_(twin, batches, half_range=config.half_range)
    return twin
