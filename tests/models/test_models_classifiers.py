"""A new classifier: in the form, dtype and device of the network it is put into."""

import pytest
import torch
from models_nets import FAMILIES, families, images, norms, small
from truth import calibrate

from repblocks import fold_blocks
from repblocks.blocks import anneal

NETWORKS = [
    *((family, {}) for family in FAMILIES),
    ("repvit", {"distilled": True}),
    ("repnext_chunk", {"distilled": True}),
    ("repvgg", {"auxiliary": True}),
]
networks = pytest.mark.parametrize(("family", "options"), NETWORKS)


def folded(family, **options):
    model = calibrate(small(family, **options), images(count=8))
    anneal(model, 1.0)
    return fold_blocks(model)[0]


@networks
@pytest.mark.parametrize("through", [(7,), (0, 7)])
@pytest.mark.parametrize("create", [folded, lambda *a, **o: small(*a, deploy=True, **o)])
def test_of_a_deployed_network_is_deployed(family, options, through, create):
    model = create(family, **options)
    for num_classes in through:
        model.reset_classifier(num_classes)
    wanted = small(family, deploy=True, num_classes=7, **options)
    assert model.state_dict().keys() == wanted.state_dict().keys()
    assert not norms(model)
    assert model.train()(images()).shape == (4, 7)
    assert all(p.isfinite().all() for p in model.get_classifier().parameters())


@networks
def test_of_a_network_in_training_is_as_if_it_were_built_with_it(family, options):
    model = small(family, **options).eval()
    model.reset_classifier(0)
    model.reset_classifier(7)
    assert not any(m.training for m in model.modules())
    wanted = small(family, num_classes=7, **options)
    assert model.state_dict().keys() == wanted.state_dict().keys()
    outputs = model.train()(images()), wanted(images())
    assert [type(y) for y in outputs] == [type(outputs[1])] * 2


@families
def test_has_the_dtype_of_the_network(family):
    model = small(family).double()
    for num_classes in (0, 3):
        model.reset_classifier(num_classes)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(images(dtype=torch.float64)).shape == (4, 3)
