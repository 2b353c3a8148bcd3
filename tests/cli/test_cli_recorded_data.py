"""What a checkpoint says about its data is built without running anything else."""

import builtins
import collections

import pytest

from repblocks.cli.recorded_data import build_recorded_data
from repblocks.data import Augmentation
from repblocks.errors import CheckpointError, ConfigurationError

NODE = {
    "_target_": "repblocks.data.synthetic.SyntheticDataModule",
    "val_size": 5,
    "batch_size": 4,
    "augmentation": {
        "_target_": "repblocks.data.augmentation.Augmentation",
        "crop_padding": 3,
        "horizontal_flip": 0.5,
    },
}
CALL = {"_target_": "builtins.print", "_args_": ["run"]}
CREATE = '${oc.create:"{_target_: builtins.print, _args_: [run]}"}'


def test_options_go_over_what_is_recorded():
    changes = {"batch_size": 7, "augmentation": {"crop_padding": 1}}
    data = build_recorded_data(NODE, changes)
    assert (data.batch_size, data._sizes["val"]) == (7, 5)
    assert data.augmentation == Augmentation(crop_padding=1, horizontal_flip=0.5)
    assert build_recorded_data(NODE).augmentation.crop_padding == 3


def test_other_data_takes_none_of_the_recorded_options():
    other = {"_target_": "repblocks.data.mnist5k.MNIST5kDataModule", "batch_size": 9}
    assert type(build_recorded_data(NODE, other)).__name__ == "MNIST5kDataModule"


@pytest.mark.parametrize("target", ["repblocks.data.cifar10.pickle.loads", "torch.load", 3, [CALL]])
@pytest.mark.parametrize(
    "place", [lambda node: node, lambda node: [node], lambda node: {"a": node}]
)
def test_only_our_data_modules_are_built(target, place):
    with pytest.raises(CheckpointError, match="is to be .*, which is no data module"):
        build_recorded_data({**NODE, "augmentation": place({"_target_": target})})
    with pytest.raises(CheckpointError, match="is to be .*, which is no data module"):
        build_recorded_data({"_target_": target})


@pytest.mark.parametrize(
    "value",
    [(CALL,), CREATE, "${oc.env:PATH}", {"a": [CREATE]}, {CREATE: 1}, {1, 2}, b"x"],
    ids=["tuple", "create", "environment", "nested", "key", "set", "bytes"],
)
@pytest.mark.parametrize("key", ["augmentation", "seed", "anything"])
def test_what_is_no_plain_value_is_not_read(value, key, monkeypatch):
    monkeypatch.setattr(builtins, "print", lambda *_: pytest.fail("code of a checkpoint ran"))
    with pytest.raises(CheckpointError, match=r"only plain values are read\. It was not run"):
        build_recorded_data({**NODE, key: value})


def test_a_mapping_that_is_no_dict_is_not_read():
    with pytest.raises(CheckpointError, match="only plain values"):
        build_recorded_data({**NODE, "augmentation": collections.UserDict(CALL)})


@pytest.mark.parametrize("special", ["_args_", "_partial_", "_recursive_", "_convert_"])
def test_words_of_hydra_are_refused(special):
    with pytest.raises(ConfigurationError, match=f"{special}"):
        build_recorded_data({**NODE, special: True})


def test_an_augmentation_alone_is_no_data():
    with pytest.raises(CheckpointError, match="no data module"):
        build_recorded_data(NODE["augmentation"])


def test_a_checkpoint_cannot_make_this_machine_download(tmp_path):
    recorded = {
        "_target_": "repblocks.data.fashion_mnist.FashionMNISTDataModule",
        "root": str(tmp_path / "elsewhere"),
        "download": True,
    }
    assert build_recorded_data(recorded).download is False
    assert build_recorded_data(recorded, {"download": True}).download is True
