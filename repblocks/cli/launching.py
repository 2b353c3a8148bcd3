"""Run a command under Hydra: mistakes end as one screen of message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Never

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString
from hydra.core.utils import env_override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from repblocks.cli.block_nodes import block_nodes
from repblocks.cli.composing import config_folder, register
from repblocks.cli.folders import remove_empty
from repblocks.cli.stopping import Stopped, StopSignals
from repblocks.errors import (
    ConfigurationError,
    NonFiniteLossError,
    RepblocksError,
    UnknownNameError,
    VerificationError,
    printable,
)

_USER_ERRORS = (RepblocksError, HydraException, OmegaConfBaseException, OSError)
_EXIT_CODES = {VerificationError: 1, NonFiniteLossError: 3}
_OTHER = 2
_PATHS = (
    *("ckpt_path", "output", "init_from", "data.root", "model.weights", "onnx"),
    *("distillation.teacher", "distillation.weights", "optimizer.scales_from"),
)
_OPTIONAL = ("experiment", "debug")
_FULL_ERROR = "HYDRA_FULL_ERROR"


def launch(config_name: str, task: Callable[[DictConfig], Any]) -> None:
    """Compose a configuration from the command line and run a task with it.

    Exits with 2 after a mistake of the user, 1 if a verification failed, 3 after losses that are
    not finite, 130 after Ctrl-C, 143 after SIGTERM. ``HYDRA_FULL_ERROR=1`` shows the traceback.

    Args:
        config_name: The file of ``configs/`` without its ending.
        task: What to do.
    """
    signals = StopSignals()
    try:
        with signals.handled():
            register()
            folder = config_folder()
            groups = _groups(folder)
            sys.argv[1:] = [_lenient(argument, groups) for argument in sys.argv[1:]]
            # Hydra then hands errors over, instead of printing them.
            with env_override({_FULL_ERROR: "1"}):
                hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)(
                    _passing_through(task, signals)
                )()
    except BaseException as error:  # noqa: BLE001 - it is raised again, or ends the process
        _end(error, signals)


def _groups(folder: Path) -> dict[str, list[str]]:
    """Give the config groups with the names of their files or nodes."""
    files = {path.name: path.glob("*.yaml") for path in folder.iterdir() if path.is_dir()}
    groups = {name: sorted(path.stem for path in found) for name, found in files.items()}
    return {**groups, "block": sorted(block_nodes())}


def _lenient(argument: str, groups: Mapping[str, list[str]]) -> str:
    """Let Hydra take any key: it stops at the first wrong one, our check names all of them.

    Raises:
        ConfigurationError: if a group is given something that is no name, where Hydra would fail.
    """
    key, equals, value = argument.partition("=")
    if equals and key.lstrip("+") in _PATHS:
        argument = f"{key}={_as_path(value)}"
    is_value = bool(equals) and key.replace(".", "").replace("_", "").isalnum()
    group = key.lstrip("+")
    if equals and (group in groups or "/" in group):
        _check_choice(group, value, groups.get(group, []))
    if not is_value or key in groups or key.startswith("hydra."):
        return argument
    return f"++{argument}"


def _as_path(value: str) -> str:
    """Quote a path that Hydra's grammar would not take as a text; ``~`` is the home folder.

    What that grammar takes stays: quoted texts, ``null``, and the choices of a sweep.
    """
    path = str(Path(value).expanduser()) if value.startswith("~") else value
    try:
        read = OverridesParser.create().parse_override(f"key={path}").value()
    except HydraException:
        read = False
    is_taken = read is None or isinstance(read, str | ChoiceSweep)
    return path if is_taken else QuotedString(path, Quote.single).with_quotes()


def _check_choice(group: str, value: str, names: list[str]) -> None:
    chosen = OverridesParser.create().parse_override(f"{group}={value}").value()
    choices = chosen.list if isinstance(chosen, ChoiceSweep) else chosen
    wrong = [
        choice
        for choice in (choices if isinstance(choices, list) else [choices])
        if choice is None or isinstance(choice, bool | int | float)
    ]
    if wrong:
        known = f" Known: {', '.join(names)}." if names else ""
        hint = f" To take none: ~{group}." if group in _OPTIONAL else ""
        raise ConfigurationError(
            f"{group}={value} is not possible, {group} takes a name.{known}{hint}"
        )


def _passing_through(
    task: Callable[[DictConfig], Any], signals: StopSignals
) -> Callable[[DictConfig], Any]:
    def run(config: DictConfig) -> Any:
        try:
            return task(config)
        except Exception as error:
            if signals.received:
                raise Stopped from error
            if not isinstance(error, _USER_ERRORS):
                raise
            remove_empty(Path(HydraConfig.get().runtime.output_dir))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # the other runs of the sweep go on
            raise Stopped from error

    return run


def _end(raised: BaseException, signals: StopSignals) -> Never:
    error = raised.__cause__ or raised if isinstance(raised, Stopped) else raised
    is_expected = signals.received or isinstance(error, _USER_ERRORS)
    if not is_expected or os.environ.get(_FULL_ERROR) == "1":
        raise error
    if signals.received:
        sys.stderr.write(signals.message(error) + "\n")
        sys.exit(signals.exit_code)
    sys.stderr.write(printable(_message(error), keep="\n\t") + "\n")
    code = next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), _OTHER)
    sys.exit(code)


def _message(error: BaseException) -> str:
    """Give what to tell the user: Hydra's messages leave out their cause."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or _groups(config_folder()).get(group)  # none for a list of names
        if options:
            return str(UnknownNameError(group, name, options))
    causes = [error, error.__cause__ if isinstance(error, HydraException) else None]
    return "\n".join(dict.fromkeys(str(cause) for cause in causes if cause is not None))
