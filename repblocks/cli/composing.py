"""Where the configuration comes from: files, and one node for each registered block."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from repblocks.blocks import CONV_BLOCKS
from repblocks.errors import ConfigurationError

# Lines of the log as they are, on the terminal; Hydra's own would also make a file.
_LOGGING = {
    "version": 1,
    "formatters": {"plain": {"format": "%(message)s"}},
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": "plain",
            "stream": "ext://sys.stdout",
        }
    },
    "root": {"level": "INFO", "handlers": ["console"]},
    "disable_existing_loggers": False,
}


def config_folder() -> Path:
    """Find the configuration files: inside an installed package, or at the top of a checkout.

    Raises:
        ConfigurationError: if they are in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "configs", package.parent / "configs")
    for folder in candidates:
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigurationError(
        f"The configuration files were looked for in {' and '.join(map(str, candidates))}, and are "
        "missing. Install repblocks again."
    )


def block_options(name: str | None) -> dict[str, inspect.Parameter]:
    """Give what can be set for a block besides its name: the kernel size and its own options.

    Args:
        name: A registered block; None stands for the one that a network chooses itself.
    """
    options = {
        "kernel_size": inspect.Parameter(
            "kernel_size", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="int | None"
        )
    }
    if name is not None:
        build = inspect.signature(CONV_BLOCKS[name].build_branches, eval_str=True)  # type: ignore[attr-defined]  # the registry holds any module
        options |= {
            key: parameter
            for key, parameter in build.parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
    return options


def _block_node(name: str | None) -> dict[str, Any]:
    defaults = {key: option.default for key, option in block_options(name).items()}
    return {"name": name, **defaults, "options": "${block_options:}"}


def _own_options(*, _parent_: DictConfig) -> DictConfig | None:
    """Collect the options of a block that are set, for ``block_options`` of a network."""
    chosen = {
        key: value
        for key, value in _parent_.items()
        if key not in ("name", "options") and value is not None
    }
    return OmegaConf.create(chosen) if chosen else None


def register() -> None:
    """Tell Hydra what does not come from files: the group ``block`` and how to log."""
    store = ConfigStore.instance()
    for name in (None, *CONV_BLOCKS):
        store.store(group="block", name=name or "default", node=_block_node(name))
    store.store(group="hydra/job_logging", name="repblocks", node=_LOGGING)
    OmegaConf.register_new_resolver("block_options", _own_options, replace=True)


def plain(config: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """Give a configuration as nested dicts and lists of plain values."""
    content = OmegaConf.to_container(config, resolve=resolve)
    return {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}
