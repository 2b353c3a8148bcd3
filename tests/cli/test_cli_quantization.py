"""INT8 through one switch of each command."""

import json
import logging
import sys

import pytest

from repblocks.cli import deploy, train

TINY = [
    *("data=synthetic", "data.image_size=16", "data.train_size=64", "data.val_size=32"),
    *("data.num_classes=3", "data.batch_size=16", "trainer.max_epochs=1", "output=run"),
    *("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"),
    "trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quantization")


@pytest.fixture
def command(folder, monkeypatch, capsys):
    """Run a command in the folder; gives its exit code and what it printed."""
    monkeypatch.chdir(folder)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["repblocks", *arguments])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        return code, "".join(capsys.readouterr())

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def report_of(artifact):
    return json.loads((artifact / "report.json").read_text(encoding="utf-8"))["quantization"]


def test_a_wrong_option_fails_before_training(command, folder):
    for wrong, message in (
        ("quantization.images=0", "quantization: images must be at least 1, got 0."),
        ("quantization.imags=3", "quantization.imags does not exist. Did you mean"),
        ("quantization.largest_drop=few", "quantization.largest_drop must be a number or null"),
    ):
        code, printed = command(train.main, *TINY, "export=int8", wrong)
        assert code == 2
        assert message in printed
    assert not list(folder.rglob("*.ckpt"))


def test_train_and_deploy_quantize(command, folder):
    switch = ("export=int8", "quantization.largest_drop=null")
    code, printed = command(train.main, *TINY, *switch, "quantization.images=40")
    assert code == 0, printed
    assert "onnx_int8: top-1" in printed
    found = report_of(folder / "run" / "artifact")
    assert (found["num_images"], found["forms"]["onnx_int8"]["num_images"]) == (40, 32)
    assert (found["config"]["equalize"], found["config"]["correct_bias"]) == ("activations", True)

    plain = ("formats=[onnx_int8]", "quantization=plain", "quantization.largest_drop=null")
    code, printed = command(deploy.main, "ckpt_path=run/checkpoints/last.ckpt", *plain, "output=b")
    assert code == 0, printed
    found = report_of(folder / "b")
    assert (found["num_images"], found["config"]["equalize"]) == (64, "none")


def test_a_network_without_images_is_not_quantized(command, folder):
    network = ("model=repvgg_tiny", "model.num_classes=3", "model.in_chans=1")
    code, printed = command(deploy.main, *network, "export=int8", "output=c")
    assert code == 2
    assert "needs images to measure its ranges on, and no data was given" in printed
    assert not (folder / "c").exists()
