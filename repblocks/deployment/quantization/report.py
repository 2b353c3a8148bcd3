"""What a deployment says about its quantized forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from repblocks.deployment.accuracy import Agreement
from repblocks.deployment.quantization.friendliness import LayerFriendliness
from repblocks.deployment.quantization.options import QuantizationConfig
from repblocks.errors import VerificationError

Rows = list[tuple[str, ...]]

FORM_HEADER = ("quantized form", "top-1 in float32", "top-1 quantized", "differing")
QUANTIZED_HEADER = ("layer", "weights", "outlier ratio", "channel ratio", "SQNR", "of the error")


@dataclass(frozen=True)
class QuantizationReport:
    """What each layer loses, and what all of them together cost.

    Args:
        config: How it was done.
        num_images: How many images the ranges were measured on.
        layers: What each layer alone loses, before anything is done about it.
        forms: The deployed network in float32 and each quantized form, under the names that
            `Agreement` has for the two: training and deployed form.
    """

    config: QuantizationConfig
    num_images: int
    layers: tuple[LayerFriendliness, ...]
    forms: Mapping[str, Agreement]

    def form_rows(self) -> Rows:
        """Give a row a form, under `FORM_HEADER`."""
        return [
            (
                name,
                f"{found.training_top1:.2%}",
                f"{found.deployed_top1:.2%}",
                f"{found.num_differing} of {found.num_images}",
            )
            for name, found in self.forms.items()
        ]

    def layer_rows(self) -> Rows:
        """Give a row a layer, under `QUANTIZED_HEADER`, that with the largest error first."""
        return [
            (
                layer.path,
                f"{layer.lowest:.3g} to {layer.highest:.3g}",
                f"{layer.outlier_ratio:.1f}",
                f"{layer.channel_ratio:.1f}",
                "exact" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB",
                f"{layer.error_share:.1%}",
            )
            for layer in self.layers_by_error()
        ]

    def layers_by_error(self) -> list[LayerFriendliness]:
        """Give the layers, that with the largest error first."""
        return sorted(self.layers, key=lambda layer: -layer.error_share)


def check_drop(file: str, found: Agreement, largest: float | None) -> None:
    """Check that a quantized form is about as accurate as the network in float32.

    Args:
        file: Its name.
        found: In float32, and quantized.
        largest: Points of top-1 that it may lose; None for any number.

    Raises:
        VerificationError: if it loses more.
    """
    drop = 100 * (found.training_top1 - found.deployed_top1)
    if largest is None or round(drop, 6) <= largest:
        return
    raise VerificationError(
        f"{file} has a top-1 of {found.deployed_top1:.2%} on {found.num_images} validation images, "
        f"and the network in float32 {found.training_top1:.2%}: it loses {drop:.2f} points, and "
        f"{largest:g} are allowed. Use more quantization.images, train with block=qarepvgg, or set "
        "quantization.largest_drop, to null for any loss.",
        difference=drop,
        tolerance=largest,
    )
