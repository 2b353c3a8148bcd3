"""Where a run finds its configuration, and the weights that it starts from."""

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

import repblocks.cli.composing as composing
from repblocks.cli.composing import config_folder, register
from repblocks.cli.parts import build_parts
from repblocks.errors import CheckpointError, ConfigurationError
from repblocks.training.checkpoint import describe


def artifact(folder):
    """Write the weights of a deployed network of 7 classes."""
    network = timm.create_model(
        "repblocks_repvgg_tiny", num_classes=7, in_chans=3, block="plain", deploy=True
    )
    save_file(network.state_dict(), folder / "model.safetensors")
    return network


def parts(*overrides):
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return build_parts(compose("train", ["data=synthetic", *overrides]))


@pytest.mark.filterwarnings("ignore:.*statistics that were never updated")
def test_an_artifact_of_other_classes_gets_a_new_head(tmp_path):
    given = artifact(tmp_path).state_dict()
    deployed = ["block=plain", "++model.deploy=true", f"++init_from={tmp_path}"]
    found = parts(*deployed).model.state_dict()
    head = {name for name in found if name.startswith("head.fc")}
    assert found["head.fc.weight"].shape == (10, given["head.fc.weight"].shape[1])
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in found.keys() - head)


@pytest.mark.filterwarnings("ignore:.*statistics that were never updated")
def test_an_artifact_does_not_fit_the_training_form(tmp_path):
    artifact(tmp_path)
    with pytest.raises(CheckpointError, match=r"do not fit RepVGG: .* with model.deploy=true\."):
        parts("block=plain", f"++init_from={tmp_path}")


def checkpoint(run, file):
    """Write the checkpoint of a run that is not trained."""
    about = describe(run.description, preprocessing={}, class_names=tuple(map(str, range(10))))
    weights = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    torch.save({"repblocks": about, "state_dict": weights}, file)


def test_weights_of_other_options_of_a_network_are_told(tmp_path, caplog):
    file = tmp_path / "last.ckpt"
    checkpoint(parts("block=repvgg", "++model.stem_stride=1"), file)
    parts("block=repvgg", "++model.stem_stride=1", f"++init_from={file}")
    assert not caplog.messages
    parts("block=repvgg", "++model.stem_stride=2", f"++init_from={file}")
    (line,) = caplog.messages
    assert f"The weights of {file} fit" in line
    assert line.endswith("other options of the network: stem_stride 1 -> 2.")


def test_the_configs_of_a_checkout_are_at_its_top():
    assert config_folder().name == "configs"
    assert (config_folder().parent / "train.py").is_file()


def test_missing_configs_say_where_they_were_looked_for(tmp_path, monkeypatch):
    file = tmp_path / "repblocks/cli/composing.py"
    monkeypatch.setattr(composing, "__file__", str(file))
    with pytest.raises(ConfigurationError, match=f"in {tmp_path}/repblocks/configs and {tmp_path}"):
        config_folder()


@pytest.mark.parametrize("data", ["image_folder", "synthetic"])
def test_a_resolved_configuration_prints_before_the_data_is_opened(data):
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        model = compose("train", [f"data={data}"]).model
    assert (model.num_classes, model.in_chans) == ({"synthetic": 10}.get(data), 3)
