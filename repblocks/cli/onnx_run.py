"""``deploy.py onnx=model.onnx``: fold an ONNX file that was exported with its branches in it."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from repblocks.cli.config import DeployConfig
from repblocks.deployment.onnx_fold import explain_onnx, fold_onnx
from repblocks.errors import ConfigurationError

_USED = {"onnx", "onnx_shape", "output", "explain"}
_OF_OTHERS = ("ckpt_path", "model", "data", "deploy_shortcut")


def onnx_run(path: Path, settings: DeployConfig) -> None:
    """Fold the file and write the result, or only show the plan.

    Args:
        path: The file.
        settings: Without a checkpoint or a network.

    Raises:
        RepblocksError: if the file or the output is not possible, or the proof fails.
    """
    given = _unused(settings)
    if given:
        raise ConfigurationError(
            f"onnx={path} is folded as it is; leave out {', '.join(given)}, which belong to a "
            "checkpoint or to a network of Python."
        )
    console = Console(soft_wrap=True, markup=False)
    if settings.explain:
        console.print(explain_onnx(path, settings.onnx_shape))
        return
    output = Path(settings.output or Path("outputs") / "deploy" / path.stem)
    report = fold_onnx(path, output, settings.onnx_shape)
    console.print(report.to_table())
    console.print(f"Artifact: {output}")


def _unused(settings: DeployConfig) -> list[str]:
    """List what was asked for that is not about an ONNX file."""
    words = (word.lstrip("+~").partition("=")[0] for word in HydraConfig.get().overrides.task)
    others = [word for word in words if word.partition(".")[0] not in _USED]
    others += [name for name in _OF_OTHERS if getattr(settings, name)]
    return list(dict.fromkeys(others))
