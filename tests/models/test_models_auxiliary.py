"""The auxiliary classifiers of RepVGGplus: scores in training mode, and nothing after it."""

import pytest
import timm
import torch
from models_nets import count_parameters, images, norms
from truth import calibrate, relative_error

import repblocks.models  # noqa: F401 - registers our networks with timm
from repblocks import fold, load_official
from repblocks.blocks import main_and_others
from repblocks.folding.switch import fold_blocks

ROW = {"depths": (1, 2, 4, 1), "widths": (8, 8, 12, 16), "stem_width": 8}


def plus(**options):
    torch.manual_seed(0)
    return timm.create_model("repblocks_repvgg_l2pse", **{"num_classes": 5, **ROW, **options})


def test_training_gives_the_scores_of_four_classifiers():
    model = plus()
    main, others = main_and_others(model(images(32)))
    assert [scores.shape for scores in (main, *others)] == [(4, 5)] * 4
    assert model.eval()(images(32)).shape == (4, 5)
    assert isinstance(plus(auxiliary=False)(images(32)), torch.Tensor)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_main_scores_are_those_of_the_network_without_them(checkpointing):
    model, bare = plus().double(), plus(auxiliary=False).double()
    bare.load_state_dict(model.state_dict(), strict=False)
    model.set_grad_checkpointing(checkpointing)
    x = images(32, dtype=torch.float64)
    main, others = main_and_others(model(x))
    assert torch.allclose(main, bare(x), rtol=1e-12)
    (main.sum() + sum(scores.square().sum() for scores in others)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_each_classifier_reads_what_its_stage_gives():
    model = plus().double()
    seen = {}
    places = {0: model.stages[0][-1], 1: model.stages[1][-1], 2: model.stages[2][1]}
    for index, place in places.items():
        place.register_forward_hook(lambda _m, _i, y, index=index: seen.update({index: y}))
    _, others = main_and_others(model(images(32, dtype=torch.float64)))
    assert seen.keys() == {0, 1, 2}
    for index, scores in enumerate(others):
        assert torch.allclose(model.auxiliary.heads[index](seen[index]), scores, rtol=1e-10)


def test_deployed_they_are_gone():
    model = plus().double()
    for norm in norms(model):
        norm.momentum = None
    calibrate(model, *(images(32, dtype=torch.float64, seed=i) for i in range(3)))
    x = images(32, dtype=torch.float64, seed=9)
    folded, _ = fold_blocks(model)
    with torch.no_grad():
        truth = model(x)
        assert relative_error(folded(x), truth) < 1e-10
        traced = fold(model, x)
        assert relative_error(traced(x), truth) < 1e-10
    assert count_parameters(traced) == count_parameters(folded)
    report, auxiliary = traced.fold_report, count_parameters(model.auxiliary)
    assert auxiliary > 0, "the model is not changed"
    assert report.parameters_after == count_parameters(traced)
    assert report.parameters_before == count_parameters(model)
    assert fold(plus().eval()).auxiliary.is_deployed, "without an example, too"
    deployed = plus(deploy=True).double().eval()
    deployed.load_state_dict(folded.state_dict(), strict=True)
    assert torch.equal(deployed(x), folded(x))
    assert isinstance(folded.train()(x), torch.Tensor)


def test_they_cost_a_convolution_and_a_linear_layer_each():
    expected = sum(9 * c * c + 2 * c + (c + 1) * 5 for c in (8, 8, 12))
    assert count_parameters(plus()) - count_parameters(plus(auxiliary=False)) == expected


def test_official_names_are_known():
    model, other = plus().double(), plus().double()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    names = {"heads.0.": "stage1_aux.", "heads.1.": "stage2_aux.", "heads.2.": "stage3_first_aux."}
    state = {}
    for name, value in model.state_dict().items():
        key, (head, _, rest) = name, name.removeprefix("auxiliary.").partition(".branches")
        for ours, theirs in names.items():
            if name.startswith(f"auxiliary.{ours}"):
                key = f"{head}{rest}".replace(ours, theirs).replace(".norm.", ".bn.")
        state[key] = value
    assert {"stage1_aux.0.conv.weight", "stage3_first_aux.3.bias"} <= state.keys()
    load_official(other, state)
    x = images(32, dtype=torch.float64)
    for found, truth in zip(other(x), model(x), strict=True):
        assert torch.equal(found, truth)
    load_official(plus(auxiliary=False), state)


def test_classes_are_replaced_everywhere():
    model = plus()
    model.reset_classifier(7)
    assert [scores.shape for scores in model(images(32))] == [(4, 7)] * 4
    model.reset_classifier(0)
    assert model(images(32)).shape == (4, 16)
    assert plus(num_classes=0)(images(32)).shape == (4, 16)


def test_features_are_those_without_them():
    maps = plus(features_only=True)(images(32))
    assert [m.shape[1] for m in maps] == [8, 8, 12, 16]
