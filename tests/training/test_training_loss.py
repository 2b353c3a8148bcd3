"""Losses of labels, auxiliary scores and teachers, by hand; and which teachers are refused."""

import pytest
import timm
import torch
from tiny_runs import tiny_config, tiny_data, tiny_model, tiny_train
from torch import nn
from torch.nn import functional

from repblocks.errors import CheckpointError, ConfigurationError, UnknownNameError
from repblocks.training import DistillationConfig, ImageClassifier, MixConfig
from repblocks.training.loss import Loss
from repblocks.training.teacher import Teacher, build_teacher

TARGETS = torch.tensor([0, 3, 2, 1, 0])


def scores(number):
    torch.manual_seed(0)
    return [torch.randn(5, 4, dtype=torch.float64) for _ in range(number)]


def entropy(values, targets=TARGETS):
    return -values.log_softmax(1)[range(5), targets].mean()


def test_auxiliary_scores_learn_the_labels_with_their_weight():
    main, first, second = scores(3)
    loss = Loss(tiny_config(auxiliary_weight=0.2))
    expected = entropy(main) + 0.2 * (entropy(first) + entropy(second))
    torch.testing.assert_close(loss([main, first, second], TARGETS, None), expected)
    torch.testing.assert_close(loss((main,), TARGETS, None), entropy(main))
    torch.testing.assert_close(loss(main, TARGETS, None), entropy(main))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_distilled_scores_learn_from_the_teacher(kind):
    main, pupil, auxiliary, taught = scores(4)
    distillation = DistillationConfig("x", kind=kind, alpha=0.3, temperature=2.0)
    loss = Loss(tiny_config(distillation=distillation), is_distilled=True)

    def from_teacher(values):
        if kind == "hard":
            return entropy(values, taught.argmax(1))
        p, q = (taught / 2).softmax(1), (values / 2).softmax(1)
        return 4 * (p * (p.log() - q.log())).sum(1).mean()

    alone = 0.7 * entropy(main) + 0.3 * from_teacher(main)
    undistilled = Loss(tiny_config(distillation=distillation))
    torch.testing.assert_close(undistilled(main, TARGETS, taught), alone)
    beside = alone + 0.1 * entropy(auxiliary)
    torch.testing.assert_close(undistilled([main, auxiliary], TARGETS, taught), beside)
    all_of_them = 0.7 * entropy(main) + 0.3 * from_teacher(pupil) + 0.1 * entropy(auxiliary)
    torch.testing.assert_close(loss([main, pupil, auxiliary], TARGETS, taught), all_of_them)


def test_binary_cross_entropy_takes_labels_and_their_mixtures():
    (main,) = scores(1)
    one_hot = functional.one_hot(TARGETS, 4).double()
    smooth = one_hot * 0.8 + 0.2 / 4
    expected = functional.binary_cross_entropy(main.sigmoid(), smooth)
    config = {"loss": "binary_cross_entropy", "label_smoothing": 0.2}
    torch.testing.assert_close(Loss(tiny_config(**config))(main, TARGETS, None), expected)
    mixed = Loss(tiny_config(**config, mix=MixConfig(mixup_alpha=0.2)))
    torch.testing.assert_close(
        mixed(main, one_hot, None), functional.binary_cross_entropy(main.sigmoid(), one_hot)
    )


def test_other_outputs_are_refused():
    with pytest.raises(ConfigurationError, match="must return scores .* got dict"):
        Loss(tiny_config())({"main": torch.zeros(1)}, TARGETS, None)


class Seen(nn.Module):
    def forward(self, images):
        self.images = images
        return images.mean((2, 3)) @ torch.eye(1, 4)


def test_a_teacher_sees_images_prepared_as_it_wants_and_does_not_learn():
    network = Seen().train()
    network.weight = nn.Parameter(torch.ones(1))
    teacher = Teacher(network, [0.5], [0.25], {"mean": (0.1,), "std": (0.2,)})
    module = ImageClassifier(tiny_model(), 4, tiny_config(), batch_size=8, teacher=teacher)
    assert not any(name == "weight" for name, _ in module.named_parameters())
    assert not any(name.startswith("teacher") for name in module.state_dict())
    pixels = torch.rand(2, 1, 12, 12)
    assert not teacher((pixels - 0.5) / 0.25).requires_grad
    assert not network.training
    torch.testing.assert_close(network.images, (pixels - 0.1) / 0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Give a checkpoint of a network that timm can build."""
    from repblocks.training import train

    folder = tmp_path_factory.mktemp("teacher")
    kwargs = {"num_classes": 4, "in_chans": 1}
    train(
        tiny_config(),
        timm.create_model("repblocks_repvgg_tiny", **kwargs),
        tiny_data(train_size=16),
        {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        output=folder,
        description={"model": {"name": "repblocks_repvgg_tiny", "kwargs": kwargs}},
    )
    return folder / "checkpoints/last.ckpt"


def test_a_network_learns_from_a_run(run, tmp_path):
    distillation = DistillationConfig(str(run), kind="soft")
    result = tiny_train(
        tmp_path / "taught", tiny_config(distillation=distillation), data=tiny_data(train_size=16)
    )
    alone = tiny_train(tmp_path / "alone", data=tiny_data(train_size=16))
    assert result.metrics["train_loss"] != alone.metrics["train_loss"]
    names = torch.load(result.last, weights_only=True)["state_dict"]
    assert names.keys() == torch.load(alone.last, weights_only=True)["state_dict"].keys()


def test_local_weights_of_a_network_of_timm(tmp_path):
    network = timm.create_model("repblocks_repvgg_tiny", num_classes=4, in_chans=1)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    config = DistillationConfig("repblocks_repvgg_tiny", weights=str(tmp_path / "w.pth"))
    teacher = build_teacher(config, tiny_data())
    got = teacher.network.model.state_dict()
    assert all(torch.equal(got[key], value) for key, value in network.state_dict().items())
    for path in (tmp_path / "none.pth", tmp_path):
        config = DistillationConfig("resnet10t", weights=str(path))
        with pytest.raises(CheckpointError, match=r"teacher resnet10t cannot be built with the fi"):
            build_teacher(config, tiny_data())


def test_impossible_teachers_are_refused(run, monkeypatch):
    with pytest.raises(UnknownNameError, match="'resnet_10t'"):
        build_teacher(DistillationConfig("resnet_10t"), tiny_data())
    with pytest.raises(CheckpointError, match="There is no checkpoint at none.ckpt"):
        build_teacher(DistillationConfig("none.ckpt"), tiny_data())
    with pytest.raises(ConfigurationError, match=r"knows 4 classes, and the data has 7"):
        build_teacher(DistillationConfig(str(run)), tiny_data(num_classes=7))
    with pytest.raises(CheckpointError, match=r"cannot be built with what timm downloads: No pret"):
        build_teacher(DistillationConfig("repblocks_repvgg_tiny"), tiny_data())
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **_: create(name, num_classes=1000))
    with pytest.raises(ConfigurationError, match=r"trained on 1000 classes, and the data has 4\."):
        build_teacher(DistillationConfig("resnet10t"), tiny_data())


def test_without_a_teacher_there_is_none():
    assert build_teacher(DistillationConfig(), tiny_data()) is None
