"""Compare two forms of a network image for image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Form = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Agreement:
    """Both forms on the validation images; accuracies in [0, 1].

    Args:
        num_images: Number of images.
        num_differing: Images whose predicted class is not the same in both forms.
        training_top1: Top-1 accuracy of the training form.
        training_top5: Its top-5 accuracy.
        deployed_top1: Top-1 accuracy of the deployed form.
        deployed_top5: Its top-5 accuracy.
    """

    num_images: int
    num_differing: int
    training_top1: float
    training_top5: float
    deployed_top1: float
    deployed_top5: float


def compare_predictions(
    training_form: Form, folded: Form, validation: Iterable[tuple[Tensor, Tensor]]
) -> Agreement | None:
    """Classify the validation images with both forms.

    Args:
        training_form: In evaluation mode, or a written form.
        folded: The other one.
        validation: Batches of images ``(N, C, H, W)`` and class numbers ``(N,)``.

    Returns:
        None if there are no images.
    """
    counts = torch.zeros(6, dtype=torch.int64)
    with torch.inference_mode():
        for images, targets in validation:
            before, after = training_form(images), folded(images)
            differing = (before.argmax(1) != after.argmax(1)).sum()
            hits = [_hits(scores, targets, k) for scores in (before, after) for k in (1, 5)]
            counts += torch.stack([torch.tensor(len(images)), differing, *hits])
    total, differing, *hits = counts.tolist()
    return Agreement(total, differing, *(hit / total for hit in hits)) if total else None


def _hits(scores: Tensor, targets: Tensor, k: int) -> Tensor:
    """Count the images whose class is among the k highest scores."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == targets[:, None]).any(dim=1).sum()
