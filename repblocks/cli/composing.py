"""Where the configuration comes from: files, and one node for each registered block."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from repblocks.cli.block_nodes import block_nodes
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


def _own_options(*, _parent_: DictConfig) -> DictConfig | None:
    """Collect the options of a block that are set, for ``block_options`` of a network."""
    own = (key for key in _parent_ if key not in ("name", "options"))
    chosen = {key: _parent_[key] for key in own if _parent_[key] is not None}
    return OmegaConf.create(chosen) if chosen else None


def _run_name(*, _root_: DictConfig) -> str:
    """Name a run after its experiment, or its network and block."""
    chosen = _root_.hydra.runtime.choices
    if chosen.get("experiment"):
        return str(chosen["experiment"])
    network = _root_.model.get("name") or chosen.get("model") or _root_.model.model_name
    parts = (network, _root_.block.name)
    return "-".join(str(part).replace("/", "_") for part in parts if part)


def register() -> None:
    """Tell Hydra what does not come from files: the group ``block``, names and how to log."""
    store = ConfigStore.instance()
    for name, node in block_nodes().items():
        store.store(group="block", name=name, node=node)
    store.store(group="hydra/job_logging", name="repblocks", node=_LOGGING)
    OmegaConf.register_new_resolver("block_options", _own_options, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)


def plain(config: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """Give a configuration as nested dicts and lists of plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))
