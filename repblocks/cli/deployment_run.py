"""From the settings of ``deploy.py`` to the artifact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from repblocks.cli.building import build, build_quantization
from repblocks.cli.config import DeployConfig
from repblocks.cli.folders import run_of
from repblocks.cli.recorded_data import build_recorded_data
from repblocks.data import ImageDataModule
from repblocks.deployment.from_checkpoint import deploy_checkpoint
from repblocks.training import read_checkpoint

_ARTIFACT = "artifact"


def deploy_run(path: Path, settings: DeployConfig) -> None:
    """Deploy a checkpoint, and say where the artifact is.

    Args:
        path: The checkpoint.
        settings: What to do with it.

    Raises:
        RepblocksError: if the checkpoint, the data or the output is not possible, or the proof
            fails.
    """
    console = Console(soft_wrap=True, markup=False)
    console.print(f"Deploying {path}")
    output = Path(settings.output) if settings.output else _beside(path)
    shortcut = settings.deploy_shortcut
    report = deploy_checkpoint(
        path,
        output,
        data=_data(path, settings),
        formats=settings.formats,
        onnx=build("onnx_export", settings.onnx_export),
        latency=settings.latency,
        model_options=None if shortcut is None else {"deploy_shortcut": shortcut},
        quantization=build_quantization(settings.quantization),
        settings=asdict(settings),
    )
    console.print(report.to_table())
    console.print(f"Artifact: {output}")
    if "safetensors" in report.forms:
        console.print(f'Next, in Python: repblocks.load("{output}")', highlight=False)


def _beside(path: Path) -> Path:
    """Give the place of the artifact: in the run of the checkpoint, or beside a lone file."""
    return (run_of(path) or path.parent) / _ARTIFACT


def _data(path: Path, settings: DeployConfig) -> ImageDataModule | None:
    """Build the data of the run that wrote the checkpoint, with changes over its options."""
    recorded = read_checkpoint(path).config.get("data")
    return build_recorded_data(recorded, settings.data) if recorded else None
