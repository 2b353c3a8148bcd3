"""A mistake ends as one screen of message and its exit code, and nothing is left behind."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from repblocks.cli import deploy, train
from repblocks.cli.checking_train import check_train
from repblocks.errors import NonFiniteLossError, VerificationError
from repblocks.training.checkpoint import describe

TINY = [
    *("data=synthetic", "data.train_size=64", "data.val_size=20", "data.batch_size=32"),
    *("data.image_size=16", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
    *("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"),
    "export=weights",
]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; gives its exit code and what it wrote to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["repblocks", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert len(error.splitlines()) < 30
        return caught.value.code, error

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def is_empty(folder: Path) -> bool:
    return list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["block=repvg"], "Unknown block 'repvg'. Did you mean 'repvgg'? Known: acb, "),
        (["optimiser=sgd"], "optimiser does not exist. Did you mean optimizer?"),
        (["trainer.max_epoch=1"], "trainer.max_epoch does not exist. Did you mean trainer.max_ep"),
        (["+trainer.limit=1"], "trainer.limit does not exist."),
        (["block=repvgg", "block.kernel_size=4"], "block.kernel_size must be odd (1, 3, 5, ...),"),
        (["block.kernel_size=-3"], "or null for the sizes of the network, got -3."),
        (["block=plain", "block.num_conv_branches=4"], "block.num_conv_branches does not exist"),
        (["block=mobileone", "block.num_conv_branches=six"], "must be an integer, got 'six'"),
        (["mode=fit"], "mode must be train or validate, got 'fit'."),
        (["mode=validate"], "mode=validate needs a checkpoint: ckpt_path=FILE."),
        (["ckpt_path=none.ckpt"], "There is no checkpoint at none.ckpt."),
        (["init_from=none.ckpt"], "There is no checkpoint at none.ckpt."),
        (["seed=1,2"], "Ambiguous value for argument"),
        (["trainer.callbacks=1"], "trainer.callbacks does not exist."),
        (["trainer.precision=7"], "trainer.precision must be 64 or 32 or 16 or "),
        (["trainer.devices=0"], "Lightning's Trainer refuses its options"),
        (["data=null"], "data=null is not possible, data takes a name. Known: cifar10, cifar100,"),
        (["trainer=3"], "trainer=3 is not possible, trainer takes a name. Known: default."),
        (["experiment=null"], ". To take none: ~experiment."),
        (["block=[plain,null]"], "block=[plain,null] is not possible, block takes a name. Known"),
        (["-m", "block=plain,null"], "block=plain,null is not possible, block takes a name."),
        (["+debug=true"], "debug=true is not possible, debug takes a name. Known: one_batch"),
        (["hydra/launcher=null"], "hydra/launcher=null is not possible, hydra/launcher takes a"),
        (
            ["block.num_conv_branches=4"],
            "does not exist for block=default. It is an option of block=mobileone.",
        ),
        (["block.num_conv_brances=4"], "brances does not exist. Known: kernel_size, name."),
        (
            ["model.model_name=repblocks_repvgg_tinny"],
            "unknown network 'repblocks_repvgg_tinny'. Did you mean 'repblocks_repvgg_tiny'?",
        ),
        (["callbacks.x=3"], "callbacks.x must be a group of keys with a _target_, got 3."),
        (["callbacks.x._target_=torch.nn.ReLU"], "callbacks.x._target_ must be a Callback of Li"),
        (["model.num_classes=-1"], "model.num_classes is -1, but the data has 10. Leave it out"),
        (
            ["model.global_pool=foo"],
            "model.global_pool must be avg or max or avgmax or catavgmax, got 'foo'.",
        ),
        (["data.batch_size=7", "mix.mixup_alpha=0.2"], "a batch must be even, got 7."),
        (["trainer.gradient_clip_val=-1"], "gradient_clip_val must be at least 0, or null for no"),
        (["optimizer=rep_sgd"], "the network has none. Choose block=plain."),
        (
            ["optimizer=rep_sgd", "block=plain", "adaptive_clip=0.1"],
            "must be null with optimizer=r",
        ),
        (["loss=mse"], "loss must be cross_entropy or binary_cross_entropy, got 'mse'."),
        (["resolution.sizes=[8]"], "epochs must be 1 rising whole numbers, one for each size, got"),
        (["distillation.teacher=none.ckpt"], "There is no checkpoint at none.ckpt."),
        (["distillation.knd=soft"], "distillation.knd does not exist. Did you mean distillation.k"),
    ],
)
def test_train(command, tmp_path, arguments, message):
    options = [] if arguments[0] == "-m" else TINY
    code, error = command(train.main, *options, *arguments)
    assert code == 2
    assert message in error
    assert is_empty(tmp_path)


def test_missing_data(command, tmp_path):
    code, error = command(train.main, "data=cifar10", "data.root=nowhere")
    assert code == 2
    assert "nowhere/cifar-10-batches-py: missing" in error
    assert is_empty(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is no checkpoint in "),
        (["ckpt_path=none.ckpt"], "There is no checkpoint at none.ckpt."),
        (["chkpt_path=x"], "chkpt_path does not exist. Did you mean ckpt_path?"),
        (["deploy_shortcut=ad"], "deploy_shortcut must be add or expand or null, got 'ad'."),
    ],
)
def test_deploy(command, tmp_path, arguments, message):
    code, error = command(deploy.main, *arguments)
    assert code == 2
    assert message in error
    assert is_empty(tmp_path)


def test_deploying_without_a_run_is_answered_before_heavy_imports(tmp_path):
    code = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules));"
        "import repblocks.cli.deploy as d; sys.argv = ['deploy.py']; d.main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
    wanted = f"There is no checkpoint in {tmp_path}/outputs or {tmp_path}/multirun. Train first"
    assert wanted in done.stderr
    assert is_empty(tmp_path)


class Code:
    """Writes a file if it is unpickled as code."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture(params=["code", "truncated", "half"])
def broken(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / "broken.ckpt"
    torch.save({"x": Code()} if request.param == "code" else {"x": torch.ones(999)}, path)
    if request.param == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    return path


@pytest.mark.parametrize("key", ["ckpt_path", "init_from"])
def test_broken_checkpoints_given_to_train(command, tmp_path, broken, key):
    code, error = command(train.main, *TINY, f"{key}={broken}")
    assert code == 2
    assert "broken.ckpt" in error
    assert is_empty(tmp_path)  # code in it would have made a file


def test_broken_checkpoints_given_to_deploy(command, tmp_path, broken):
    code, error = command(deploy.main, f"ckpt_path={broken}", f"output={tmp_path / 'artifact'}")
    assert code == 2
    assert "broken.ckpt" in error
    assert is_empty(tmp_path)


def checkpoint(path: Path, data: dict, **model) -> Path:
    """Write a checkpoint of the right form, of a network that was not trained."""
    import timm

    kwargs = {"num_classes": 10, "in_chans": 3, **model}
    network = timm.create_model("repblocks_repvgg_tiny", **kwargs)
    about = describe(
        {"config": {"data": data}, "model": {"name": "repblocks_repvgg_tiny", "kwargs": kwargs}},
        preprocessing={"input_size": [3, 16, 16]},
        class_names=tuple("0123456789"),
    )
    network(torch.randn(2, 3, 16, 16))  # in training mode: BatchNorm gets statistics
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "repblocks": about, "global_step": 1}, path)
    return path


@pytest.mark.parametrize("main", [train.main, deploy.main])
def test_code_that_a_checkpoint_names_as_its_data_does_not_run(
    command, tmp_path, tmp_path_factory, main
):
    data = {"_target_": "os.system", "command": "touch ran"}
    path = checkpoint(tmp_path_factory.mktemp("given") / "x.ckpt", {"augmentation": data})
    mode = [*TINY[5:], "mode=validate"] if main is train.main else ["output=artifact"]
    code, error = command(main, *mode, f"ckpt_path={path}")
    assert code == 2
    assert "is to be 'os.system', which is no data module" in error
    assert is_empty(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("data.val_sise=3", "data.val_sise does not exist. Did you mean data.val_size?"),
        (
            "data.augmentation.horizontal_flp=1",
            "horizontal_flp does not exist. Did you mean data.augmentation.horizontal_flip?",
        ),
        (
            "deploy_shortcut=expand",
            "network repblocks_repvgg_tiny of the checkpoint has no argument deploy_shortcut.",
        ),
    ],
)
def test_wrong_options_given_to_deploy(command, tmp_path, tmp_path_factory, wrong, message):
    module = "repblocks.data"
    data = {
        "_target_": f"{module}.synthetic.SyntheticDataModule",
        "augmentation": {"_target_": f"{module}.augmentation.Augmentation"},
    }
    path = checkpoint(tmp_path_factory.mktemp("given") / "x.ckpt", data)
    code, error = command(deploy.main, f"ckpt_path={path}", "output=artifact", wrong)
    assert code == 2
    assert message in error
    assert is_empty(tmp_path)


def test_a_checkpoint_of_another_architecture(command, tmp_path, tmp_path_factory):
    path = checkpoint(tmp_path_factory.mktemp("given") / "x.ckpt", {}, block="plain")
    for key in ("ckpt_path", "init_from"):
        code, error = command(train.main, *TINY, f"{key}={path}")
        assert code == 2
        assert "The weights do not fit" in error
        assert is_empty(tmp_path)


def test_a_checkpoint_of_other_images(command, tmp_path, tmp_path_factory):
    path = checkpoint(tmp_path_factory.mktemp("given") / "x.ckpt", {})
    code, error = command(train.main, *TINY, "mode=validate", f"ckpt_path={path}")
    assert code == 2
    assert "interpolation was None and is bilinear" in error
    assert "classes are others: 10 only in training (0, 1, 2, ...), 10 only here (class_0," in error
    assert is_empty(tmp_path)


@pytest.mark.parametrize("main", [train.main, deploy.main])
def test_an_output_that_cannot_be_written(command, tmp_path, tmp_path_factory, main):
    # Root may write into every folder; below a file nobody may.
    path = checkpoint(tmp_path_factory.mktemp("given") / "x.ckpt", {})
    (tmp_path / "file").touch()
    arguments = TINY if main is train.main else [f"ckpt_path={path}"]
    code, error = command(main, *arguments, "output=file/run")
    assert code == 2
    assert "file" in error
    assert "annot" in error
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (VerificationError("they part", difference=1.0, tolerance=0.1), 1),
        (NonFiniteLossError("not finite"), 3),
        (PermissionError(13, "Permission denied", "x"), 2),
    ],
)
def test_exit_codes(command, monkeypatch, error, expected):
    def fail(_):
        raise error

    monkeypatch.setattr("repblocks.cli.training_run.train_and_deploy", fail)
    code, message = command(train.main, *TINY)
    assert code == expected
    assert str(error) in message


def test_a_traceback_is_shown_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["repblocks", *TINY, "sede=1"])
    with pytest.raises(ValueError, match="Did you mean seed") as caught:
        train.main()
    assert any(entry.name == check_train.__name__ for entry in caught.traceback)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("export=a", "Unknown export 'a'. Known: all, auto, int8,"),
        ("export=[a]", "Unknown export 'a'. Known: all, auto, int8,"),
        ("export=[onnx,a]", "Unknown export 'a'. Known: all, auto, int8,"),
        ("formats=[onxx]", "Unknown export format 'onxx'. Did you mean 'onnx'"),
        (
            "onnx_export.pixels=true",
            "about the format onnx, not among the formats: safetensors.",
        ),
        ("formats=[]", "at least one export format, got none"),
        ("onnx_export.pixels=7", "onnx_export.pixels must be true or false, got 7"),
        (
            "++onnx_export.dynamic=true",
            "onnx_export.dynamic does not exist. Did you mean onnx_export.dynamic_size?",
        ),
        ("seed=-1", "seed must be in [0, 2**32), got -1"),
        ("trainer.limit_train_batches=0", "limit_train_batches must be more than 0, got 0"),
    ],
)
def test_what_would_fail_later_fails_before_training(command, tmp_path, wrong, message):
    code, error = command(train.main, *TINY, wrong)
    assert code == 2
    assert message in error
    assert not list(tmp_path.rglob("*.ckpt"))
