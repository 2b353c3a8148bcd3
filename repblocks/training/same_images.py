"""Whether images are those that a network was trained for: their classes and their preparation."""

from __future__ import annotations

from repblocks.data import ImageDataModule
from repblocks.errors import ConfigurationError
from repblocks.training.checkpoint import Checkpoint, listed


def check_same_images(checkpoint: Checkpoint, data: ImageDataModule) -> None:
    """Check that what is measured on these images says something about the network.

    Args:
        checkpoint: Of the network.
        data: With its images opened.

    Raises:
        ConfigurationError: naming each difference.
    """
    then, now = checkpoint.preprocessing, data.preprocessing
    wrong = [
        f"{key} was {then.get(key)} and is {now.get(key)}"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]
    if list(checkpoint.class_names) != list(data.class_names):
        wrong.append(_other_classes(checkpoint.class_names, data.class_names))
    if wrong:
        raise ConfigurationError(
            f"The images do not fit the network of {checkpoint.path}: {'; '.join(wrong)}. Use the "
            "data of the run that wrote it, with its options."
        )


def _other_classes(trained: tuple[str, ...], found: tuple[str, ...]) -> str:
    parts = (
        listed("only in training", [name for name in trained if name not in found]),
        listed("only here", [name for name in found if name not in trained]),
    )
    return f"classes are others: {', '.join(filter(None, parts)) or 'their order differs'}"
