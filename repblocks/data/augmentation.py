"""The random changes made to a training image, as plain fields; the changes are timm's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import floor
from typing import Any

from PIL import Image
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import (
    RandomResizedCropAndInterpolation,
    str_to_interp_mode,
    str_to_pil_interp,
)
from torch import Tensor
from torchvision import transforms

from repblocks.data.preprocessing import convert
from repblocks.errors import ConfigurationError

_RANGES = {
    "crop_padding": (0, 1024),
    "random_resized_crop": (0.01, 1),
    "horizontal_flip": (0, 1),
    "affine_degrees": (0, 180),
    "affine_translate": (0, 1),
    "affine_scale": (0, 0.99),
    "color_jitter": (0, 1),
    "random_erasing": (0, 1),
    "cutout": (0, 1024),
}
_ERASING_MODES = ("pixel", "const")


@dataclass(frozen=True)
class Augmentation:
    """What changes at random in a training image, in the order of the fields; nothing by default.

    Mixing images (mixup, cutmix) works on batches and belongs to training.
    """

    # Crop the image out of itself with this many zero pixels around it.
    crop_padding: int = 0
    # Crop a part with at least this share of the area and scale it up; replaces crop_padding.
    random_resized_crop: float | None = None
    # Scale that part, and what RandAugment turns, bilinear or bicubic by chance.
    random_interpolation: bool = False
    # Probability of mirroring left and right.
    horizontal_flip: float = 0.0
    # Rotate by up to this many degrees either way.
    affine_degrees: float = 0.0
    # Shift by up to this share of the width and of the height.
    affine_translate: float = 0.0
    # Zoom in or out by up to this share.
    affine_scale: float = 0.0
    # DeiT III: one of grey, solarized or blurred (Touvron et al., 2022, arXiv:2204.07118).
    three_augment: bool = False
    # RandAugment in timm's words, for example rand-m9-mstd0.5 (arXiv:1909.13719).
    rand_augment: str | None = None
    # Change brightness, contrast and saturation by up to this share.
    color_jitter: float = 0.0
    # Probability of erasing a rectangle of 2 to 33 % of the area (arXiv:1708.04896).
    random_erasing: float = 0.0
    # What fills the rectangle: pixel (normal noise) or const (the mean colour).
    random_erasing_mode: str = "pixel"
    # Side in pixels of a square that gets the mean colour (arXiv:1708.04552; wholly inside).
    cutout: int = 0

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ConfigurationError(f"Augmentation: {'; '.join(problems)}.")

    def _problems(self) -> Iterator[str]:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                yield f"{name} must be from {low} to {high}, got {value}"
        if self.random_interpolation and self.random_resized_crop is None:
            yield "random_interpolation needs random_resized_crop, got none"
        if self.rand_augment is not None and not _is_rand_augment(self.rand_augment):
            yield f"rand_augment must look like rand-m9-mstd0.5 or be null, got {self.rand_augment}"
        if self.random_erasing_mode not in _ERASING_MODES:
            yield f"random_erasing_mode must be pixel or const, got {self.random_erasing_mode}"

    def build(self, preprocessing: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Build the training transform.

        Args:
            preprocessing: As of ``ImageDataModule.preprocessing``: training images get the same
                size, channels and normalisation as those of evaluation.

        Returns:
            A function from an image of any mode and size to a float32 tensor ``(C, H, W)``, which
            draws from the global random generators.

        Raises:
            ConfigurationError: if ``cutout`` is not smaller than the images.
        """
        steps = [
            convert(preprocessing["in_channels"]),
            *self._geometry(preprocessing),
            *self._colors(preprocessing),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing["mean"], preprocessing["std"]),
        ]
        if self.random_erasing:
            erasing = RandomErasing(
                self.random_erasing, mode=self.random_erasing_mode, device="cpu"
            )
            steps.append(erasing)
        if self.cutout:
            steps.append(self._square(preprocessing["input_size"][-1]))
        return transforms.Compose(steps)

    def _square(self, size: int) -> RandomErasing:
        if self.cutout >= size:
            raise ConfigurationError(
                f"cutout must be smaller than images of {size} pixels, got {self.cutout}."
            )
        area = (self.cutout / size) ** 2
        return RandomErasing(
            1.0, min_area=area, max_area=area, min_aspect=1, mode="const", device="cpu"
        )

    def _geometry(self, preprocessing: Mapping[str, Any]) -> list[Any]:
        size = preprocessing["input_size"][-1]
        word = "random" if self.random_interpolation else preprocessing["interpolation"]
        steps: list[Any] = []
        if self.random_resized_crop is not None:
            scale = (self.random_resized_crop, 1.0)
            steps.append(RandomResizedCropAndInterpolation(size, scale, interpolation=word))
        else:
            mode = str_to_interp_mode(word)
            steps.append(transforms.Resize(floor(size / preprocessing["crop_pct"]), mode))
            steps.append(transforms.RandomCrop(size, padding=self.crop_padding or None))
        if self.horizontal_flip:
            steps.append(transforms.RandomHorizontalFlip(self.horizontal_flip))
        if self.affine_degrees or self.affine_translate or self.affine_scale:
            steps.append(
                transforms.RandomAffine(
                    self.affine_degrees,
                    translate=(self.affine_translate, self.affine_translate),
                    scale=(1 - self.affine_scale, 1 + self.affine_scale),
                    interpolation=transforms.InterpolationMode.BILINEAR,
                )
            )
        return steps

    def _colors(self, preprocessing: Mapping[str, Any]) -> list[Any]:
        steps: list[Any] = []
        if self.three_augment:
            steps.append(auto_augment_transform("3a", {}))
        if self.rand_augment is not None:
            size = preprocessing["input_size"][-1]
            mean = tuple(min(255, round(255 * value)) for value in preprocessing["mean"])
            hparams = {
                "translate_const": int(size * 0.45),
                # PIL wants the colour that fills the corners of a grey image as a number.
                "img_mean": mean if len(mean) > 1 else mean[0],
            }
            if not self.random_interpolation:
                hparams["interpolation"] = str_to_pil_interp(preprocessing["interpolation"])
            steps.append(rand_augment_transform(self.rand_augment, hparams))
        if self.color_jitter:
            steps.append(transforms.ColorJitter(*[self.color_jitter] * 3))
        return steps


def _is_rand_augment(config: str) -> bool:
    try:
        rand_augment_transform(config, {})
    except (AssertionError, KeyError, ValueError):
        return False
    return True
