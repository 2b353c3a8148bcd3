"""``deploy.py``: fold a checkpoint, prove it and write the artifact; or check one again."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from repblocks.cli.artifact_check import COMMAND, check_main
from repblocks.cli.checking import check, parameters_of
from repblocks.cli.composing import plain
from repblocks.cli.config import DeployConfig
from repblocks.cli.folders import newest_run_checkpoint
from repblocks.cli.launching import launch
from repblocks.errors import ConfigurationError

_RUNS = (Path("outputs"), Path("multirun"))


def main() -> None:
    """Deploy a checkpoint as the command line says, or check an artifact."""
    if sys.argv[1:2] == [COMMAND]:
        sys.exit(check_main(sys.argv[2:]))
    launch("deploy", run)


def run(config: DictConfig) -> None:
    """Do what a composed configuration says.

    Args:
        config: Of ``configs/deploy.yaml``.

    Raises:
        RepblocksError: if something in it is not possible, or the proof fails.
    """
    settings = plain(config, resolve=True)
    check(settings, parameters_of(DeployConfig), {})
    wanted = DeployConfig(**settings)
    if wanted.onnx:
        from repblocks.cli.onnx_run import onnx_run

        return onnx_run(Path(wanted.onnx), wanted)
    if wanted.onnx_shape:
        raise ConfigurationError("onnx_shape says how to run onnx=FILE; name that too.")
    if wanted.model:
        from repblocks.cli.network_run import network_run

        return network_run(wanted)
    if wanted.explain:
        raise ConfigurationError(
            "explain=true shows what would be folded of model=...; of a checkpoint each block is "
            "folded, as its report.md says. Leave explain out, or name a network."
        )
    path = Path(wanted.ckpt_path) if wanted.ckpt_path else newest_run_checkpoint(*_RUNS)
    # Lightning and timm take seconds to load, and --help does without them.
    from repblocks.cli.deployment_run import deploy_run

    return deploy_run(path, wanted)
