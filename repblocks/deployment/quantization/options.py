"""What can be chosen about a quantized form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from repblocks.errors import ConfigurationError

Equalize = Literal["none", "weights", "activations"]


@dataclass(frozen=True)
class QuantizationConfig:
    """How the formats that quantize do it; one that was not chosen to be written ignores it.

    Args:
        images: How many training images, prepared as in evaluation, the ranges are measured on.
        seed: Which images.
        equalize: ``"weights"`` balances the channels between two layers by their weights (Nagel
            et al.), ``"activations"`` by the activations that the images give, ``"none"`` not.
        correct_bias: Take the mean error of each channel out of the biases.
        half_range: Weights use 7 of their 8 bits. CPUs without VNNI add two products of 8 bits in
            16, which overflows with full weights; elsewhere ``False`` is a little more accurate.
        largest_drop: Points of top-1 that a quantized form may lose, or None for any number.
        report_images: On how many of the images the error of each layer is measured.
        auto: ``export=auto`` may choose a quantized form, if that loses no more than
            ``largest_drop``; otherwise it times them, and leaves them out.

    Raises:
        ConfigurationError: if a value is out of range.
    """

    images: int = 512
    seed: int = 0
    equalize: Equalize = "activations"
    correct_bias: bool = True
    half_range: bool = True
    largest_drop: float | None = 0.5
    report_images: int = 32
    auto: bool = False

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be at least 1, got {value}"
            for name, value in (("images", self.images), ("report_images", self.report_images))
            if value < 1
        ]
        if self.equalize not in get_args(Equalize):
            known = ", ".join(get_args(Equalize))
            wrong.append(f"equalize must be one of {known}, got {self.equalize!r}")
        if self.largest_drop is not None and not 0 <= self.largest_drop <= 100:
            wrong.append(f"largest_drop must be from 0 to 100, or null, got {self.largest_drop}")
        if wrong:
            raise ConfigurationError(f"quantization: {'; '.join(wrong)}.")
