"""Every data module has a config file that says all of its options."""

import importlib
import inspect
import pkgutil
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import repblocks.data
from repblocks.data import Augmentation, ImageDataModule

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


def data_modules():
    for module in pkgutil.iter_modules(repblocks.data.__path__, "repblocks.data."):
        for name, member in vars(importlib.import_module(module.name)).items():
            is_defined_there = inspect.isclass(member) and member.__module__ == module.name
            if is_defined_there and ImageDataModule in member.__mro__[1:]:
                yield f"{module.name}.{name}"


def test_each_data_module_has_one_config():
    targets = [OmegaConf.load(path)["_target_"] for path in CONFIGS]
    assert sorted(targets) == sorted(data_modules())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_states_every_option_and_builds(path):
    config = OmegaConf.merge({"seed": 4, "data": OmegaConf.load(path)}).data
    data = instantiate(config)
    assert set(config) - {"_target_"} == set(inspect.signature(type(data)).parameters)
    assert isinstance(data.augmentation, Augmentation)
    assert set(config.augmentation) - {"_target_"} <= {field.name for field in fields(Augmentation)}
    assert (data.seed, data.batch_size) == (4, config.batch_size)
    assert len(data.mean) == len(data.std) == data.in_channels
    data.augmentation.build(data.preprocessing)
