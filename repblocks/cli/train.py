"""``train.py``: check the configuration, then train or validate."""

from __future__ import annotations

from omegaconf import DictConfig

from repblocks.cli.launching import launch


def main() -> None:
    """Train, or validate, as the command line says."""
    launch("train", run)


def run(config: DictConfig) -> float | None:
    """Do what a composed configuration says.

    Args:
        config: Of ``configs/train.yaml``.

    Returns:
        The accuracy on the validation images, for sweepers.

    Raises:
        RepblocksError: if something in it is not possible.
    """
    # Lightning and timm take seconds to load, and --help does without them.
    from repblocks.cli.checking_train import check_train
    from repblocks.cli.training_run import train_and_deploy
    from repblocks.cli.validation_run import for_validation, validate_checkpoint

    is_validation = config.mode == "validate"
    config = for_validation(config) if is_validation else config
    check_train(config)
    return validate_checkpoint(config) if is_validation else train_and_deploy(config)
