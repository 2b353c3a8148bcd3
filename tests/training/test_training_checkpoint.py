import logging
import pickle
import shutil
from importlib.metadata import version

import pytest
import torch
from tiny_runs import DESCRIPTION, tiny_config, tiny_data, tiny_model, tiny_train
from torch import nn

from repblocks.errors import CheckpointError, ConfigurationError
from repblocks.training import load_weights, newest_checkpoint, read_checkpoint
from repblocks.training.checkpoint import describe
from repblocks.training.saving import AtomicCheckpointIO


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_train(folder, tiny_config(ema_decay=0.9), data=tiny_data(train_size=16))
    return folder / "checkpoints" / "last.ckpt"


class Hostile:
    """Writes a file if it is ever unpickled."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (open, (str(self.witness), "w"))


def test_checkpoint_says_what_deployment_needs(written):
    checkpoint = read_checkpoint(written)
    assert checkpoint.model_name == "tiny"
    assert checkpoint.model_kwargs == {"width": 8}
    assert checkpoint.config == {"seed": 7}
    assert checkpoint.class_names == tiny_data().class_names
    assert checkpoint.preprocessing == tiny_data().preprocessing
    about = checkpoint.raw["repblocks"]
    assert about["format"] == 1
    assert about["versions"]["torch"] == version("torch")
    model = tiny_model()
    load_weights(model, checkpoint.state_dict, new_head=False)
    averaged = checkpoint.raw["state_dict"]["ema.module.0.weight"]
    assert torch.equal(model[0].weight, averaged)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, kind):
    path, witness = tmp_path / "bad.ckpt", tmp_path / "witness"
    content = {"state_dict": {}, "repblocks": Hostile(witness)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"bad\.ckpt holds more than .* Nothing in it was executed"
    ):
        read_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint_is_damaged(tmp_path, written, share):
    path = tmp_path / "half.ckpt"
    content = written.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"half\.ckpt is .*damaged"):
        read_checkpoint(path)


def test_missing_and_foreign_files_say_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint at .*none\.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        read_checkpoint(tmp_path)
    for name, content in {"a": {"state_dict": {}}, "b": [1]}.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=r"no entry 'repblocks'. Take best.ckpt"):
            read_checkpoint(tmp_path / name)


def test_other_formats_and_incomplete_ones_are_refused(tmp_path, written):
    raw = torch.load(written, weights_only=True)
    later = {**raw, "repblocks": {**raw["repblocks"], "format": 2}}
    torch.save(later, tmp_path / "later")
    with pytest.raises(CheckpointError, match="has format 2, and this version reads format 1"):
        read_checkpoint(tmp_path / "later")
    del raw["state_dict"]
    torch.save(raw, tmp_path / "less")
    with pytest.raises(CheckpointError, match="not complete: KeyError 'state_dict'"):
        read_checkpoint(tmp_path / "less")
    unnamed = {**raw["repblocks"], "model": {"name": "tiny", "kwargs": {"num_classes": 5}}}
    torch.save({"state_dict": {}, "repblocks": unnamed}, tmp_path / "unnamed")
    message = r"unnamed: There are 4 class names for a network of num_classes=5\. .* Take another"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "unnamed")


def test_description_is_checked_before_training():
    facts = {"preprocessing": {}, "class_names": ("a", "b")}
    with pytest.raises(ConfigurationError, match=r'must hold "model".*got the keys \[\'config\'\]'):
        describe({"config": {}}, **facts)
    with pytest.raises(ConfigurationError, match="plain Python only"):
        describe({**DESCRIPTION, "config": {"f": tiny_model}}, **facts)
    model = {"name": "tiny", "kwargs": {"num_classes": 3}}
    with pytest.raises(ConfigurationError, match=r"are 2 class names .* of num_classes=3\."):
        describe({"model": model}, **facts)


def test_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3)}, path)

    def half(_, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(CheckpointError, match=r"Cannot write .*last\.ckpt: .*No space left"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))


def test_weights_of_another_network_are_listed():
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dict(before)
    del state["0.weight"]
    state["1.conv.weight"] = torch.zeros(8, 8, 1, 1)
    for number in range(5):
        state[f"more{number}"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, state, new_head=True)
    text = str(caught.value)
    assert "1 missing (0.weight)" in text
    assert "5 unexpected (more0, more1, more2, ...)" in text
    assert "1 of another shape (1.conv.weight (8, 8, 1, 1) for (8, 8, 3, 3))" in text
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_new_head_keeps_the_last_layer_and_takes_the_rest(caplog):
    state = tiny_model(num_classes=9).state_dict()
    state["0.weight"] = state["0.weight"] + 1
    model = tiny_model(num_classes=4)
    head = model[-1].weight.detach().clone()
    with caplog.at_level(logging.INFO):
        load_weights(model, state, new_head=True)
    assert "5.weight, 5.bias start new" in caplog.text
    assert torch.equal(model[0].weight, state["0.weight"])
    assert torch.equal(model[-1].weight, head)
    with pytest.raises(CheckpointError, match=r"2 of another shape \(5.weight \(9, 8\) for \(4, 8"):
        load_weights(tiny_model(num_classes=4), state, new_head=False)


def test_two_layers_of_another_shape_are_no_head():
    def network(width):
        return nn.Sequential(nn.Linear(3, width), nn.Linear(width, width))

    with pytest.raises(CheckpointError, match="4 of another shape"):
        load_weights(network(4), network(5).state_dict(), new_head=True)


def test_newest_checkpoint_is_the_one_to_resume_from(tmp_path, written):
    with pytest.raises(CheckpointError, match=r"No checkpoint to resume .*last\.ckpt and step_"):
        newest_checkpoint(tmp_path)
    for name in ("last.ckpt", "step_9.ckpt", "best.ckpt"):
        shutil.copyfile(written, tmp_path / name)
    assert newest_checkpoint(tmp_path).name == "step_9.ckpt"
