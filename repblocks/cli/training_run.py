"""``train.py mode=train``: train, deploy the best checkpoint, and say what to do next."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from typing_extensions import override

from repblocks.cli.building import build, build_data, build_quantization
from repblocks.cli.composing import config_folder
from repblocks.cli.folders import CHECKPOINTS, is_first_process, run_folder
from repblocks.cli.parts import Parts, build_parts
from repblocks.cli.stopping import telling
from repblocks.cli.summary import SUMMARY
from repblocks.deployment.from_checkpoint import deploy_checkpoint
from repblocks.deployment.report import DeploymentReport
from repblocks.errors import CheckpointError
from repblocks.training import TrainingResult, newest_checkpoint, read_checkpoint, train

_logger = logging.getLogger(__name__)

ARTIFACT = "artifact"
CONFIG = "config.yaml"


def train_and_deploy(config: DictConfig) -> float | None:
    """Train, and write the artifact if ``deploy`` is on.

    Returns:
        The best accuracy on the validation images.

    Raises:
        RepblocksError: if a part is not possible, training stops, or the proof fails.
    """
    ckpt_path = None if config.ckpt_path is None else Path(config.ckpt_path)
    with run_folder(config.output, HydraConfig.get().runtime.output_dir, ckpt_path) as output:
        parts = build_parts(config)
        if ckpt_path is not None:
            _log_changes(read_checkpoint(ckpt_path).config, parts.settings)
        with telling(lambda: _how_to_go_on(output)):
            result = train(
                parts.training,
                parts.model,
                parts.data,
                parts.settings["trainer"],
                output=output,
                description=parts.description,
                ckpt_path=ckpt_path,
                callbacks=[*parts.callbacks, _SavedConfig(parts.settings, output)],
            )
        if is_first_process():
            with telling(lambda: f"Training was complete. {_deploying(result)}"):
                _finish(parts, result, output)
    return result.metrics.get("best_val_top1")


def _how_to_go_on(output: Path) -> str:
    """Say what can be done with a run that was stopped."""
    if not is_first_process():
        return ""
    try:
        newest = newest_checkpoint(output / CHECKPOINTS)
    except CheckpointError:
        return "There was no checkpoint yet: start the run anew."
    return f"To continue, give the same command and ckpt_path={shlex.quote(str(newest))}"


def _deploying(result: TrainingResult) -> str:
    path = result.best or result.last
    return f"Next: deploy.py ckpt_path={shlex.quote(str(path))}" if path else ""


def _log_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Say which settings are not those of the interrupted run: its continuation is not exact."""
    old, new = _flat(before), _flat(after)
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in ("ckpt_path", "output", "init_from")
    ]
    if changed and is_first_process():
        _logger.warning("Continuing with other settings than before: %s.", "; ".join(changed))


def _flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Give each value by its path."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {path + key: value}
    return flat


class _SavedConfig(pl.Callback):
    """Write the configuration beside the run, once it is sure that there is a run."""

    def __init__(self, settings: Mapping[str, Any], output: Path) -> None:
        self.settings = settings
        self.output = output

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            _write_config(self.settings, self.output)


def _write_config(settings: Mapping[str, Any], output: Path) -> None:
    """Write a configuration that ``--config-dir`` runs again, in a folder of its own."""
    again = {
        "defaults": ["_self_", {"override hydra/job_logging": "repblocks"}],
        **settings,
        "output": None,
        "ckpt_path": None,  # again, and not further
        "hydra": OmegaConf.load(config_folder() / "train.yaml").hydra,
    }
    command = (
        f"# Run it again: train.py --config-dir {shlex.quote(str(output))} --config-name config\n"
    )
    # Another run that was to start here may have taken the folder for its own empty one.
    output.mkdir(parents=True, exist_ok=True)
    partial = output / f"{CONFIG}.part"
    partial.write_text(command + OmegaConf.to_yaml(OmegaConf.create(again)), encoding="utf-8")
    partial.replace(output / CONFIG)


def _finish(parts: Parts, result: TrainingResult, output: Path) -> None:
    """Deploy, and tell what there is."""
    console = Console(soft_wrap=True, markup=False)
    accuracy = result.metrics.get("best_val_top1")
    shown = "no validation" if accuracy is None else f"best top-1 {accuracy:.2%}"
    console.print(f"Trained in {result.seconds:.0f} s, {shown}.")
    checkpoint = result.best or result.last
    report = None
    if checkpoint is None:
        console.print(f"No checkpoint was written. Logs: {output}")
    elif parts.settings["deploy"]:
        # New data: that of training may be divided among processes.
        data = build_data(parts.settings["data"])
        report = deploy_checkpoint(
            checkpoint,
            output / ARTIFACT,
            data=data,
            formats=parts.settings["formats"],
            onnx=build("onnx_export", parts.settings["onnx_export"]),
            quantization=build_quantization(parts.settings.get("quantization")),
        )
        console.print(report.to_table())
        console.print(f"Checkpoint: {checkpoint}\nArtifact: {output / ARTIFACT}")
        if "safetensors" in parts.settings["formats"]:
            text = f'Next, in Python: repblocks.load("{output / ARTIFACT}")'
            console.print(text, highlight=False)
    else:
        console.print(f"Checkpoint: {checkpoint}\n{_deploying(result)}")
    _write_summary(output, accuracy, result.seconds, report)


def _write_summary(
    output: Path, accuracy: float | None, seconds: float, report: DeploymentReport | None
) -> None:
    """Write what the table of a sweep shows about this run, where the sweep looks for it."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        output = Path(HydraConfig.get().runtime.output_dir)
    overrides = [text.lstrip("+") for text in HydraConfig.get().overrides.task]
    row: dict[str, Any] = {
        "overrides": " ".join(overrides),
        "accuracy": accuracy,
        "train_seconds": seconds,
    }
    if report is not None:
        row["deployed_bytes"] = next(
            (size for name, size in report.sizes.items() if name.startswith("model.")), None
        )
        row["latency_ms"] = report.measured["latency_ms"]["deployed_form"]
    output.mkdir(parents=True, exist_ok=True)
    (output / SUMMARY).write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
