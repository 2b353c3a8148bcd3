"""Inputs of other dtypes, devices and sizes: what merged blocks give, and when the branches run."""

import pytest
import torch
from execution_runs import assert_same, block_of, image, step

from repblocks.blocks import create_block
from repblocks.execution import window_moments
from repblocks.execution.dense_reading import split_dense
from repblocks.execution.profit import dense_pays

BLOCKS = [
    ("mobileone", (8, 8, 1), {}),
    ("mobileone", (8, 8, 3), {"groups": 8}),
    ("repvgg", (8, 8, 3), {}),
    ("dbb", (8, 8, 3), {}),
]
blocks = pytest.mark.parametrize(("name", "shape", "options"), BLOCKS, ids=str)


@blocks
def test_what_torch_says_of_an_input_is_said(name, shape, options):
    for x, weights in [
        (torch.randn(0, 8, 9, 9), torch.float32),
        (torch.randn(2, 8, 9, 9), torch.float16),
        (torch.randn(2, 8, 9, 9), torch.float64),
        (torch.randn(2, 8, 9, 9, device="meta"), torch.float32),
        (torch.randn(2, 6, 9, 9), torch.float32),
    ]:
        block = block_of(name, *shape, **options).to(weights).to(x.device)
        with pytest.warns(
            UserWarning, match="branchwise here: .* (empty|dtype|meta|many channels)"
        ):
            found = outcome(block, x, "merged")
        assert found == outcome(block, x, "branchwise")


def outcome(block, x, execution):
    block.execution = execution
    try:
        y = block(x)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return y.shape, y.dtype


@pytest.mark.parametrize(("name", "options"), [("orepa", {}), ("repvgg", {"post_norm": True})])
def test_the_default_runs_on_the_meta_device(name, options):
    block = create_block(name, 8, 8, 3, **options).to("meta")
    assert block(torch.randn(2, 8, 32, 32, device="meta")).shape == (2, 8, 32, 32)


@pytest.mark.parametrize("execution", ["auto", "weight_space", "merged"])
@blocks
@pytest.mark.filterwarnings("ignore:execution=.* runs branchwise here. a transform of torch")
def test_transforms_of_frozen_blocks(name, shape, options, execution):
    block, x = block_of(name, *shape, **options), image(3, 8, 32, 32)
    block(x)
    block.branches.apply(lambda m: m.eval() if hasattr(m, "running_mean") else m)
    weights = {key: value.detach() for key, value in block.named_parameters()}

    def loss(own, image):
        return torch.func.functional_call(block, own, (image[None],)).square().sum()

    found = {}
    for block.execution in ("branchwise", execution):
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
        found[block.execution] = each
    for key, value in found["branchwise"].items():
        assert torch.equal(found[execution][key], value), key


STRIDED = [
    ("mobileone", (8, 8, 1, 2), {}),
    ("mobileone", (8, 8, 3, 2), {"groups": 8}),
    ("repvgg", (8, 8, 3, 2), {}),
    ("repvgg", (8, 12, 3), {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "shape", "options"), BLOCKS + STRIDED, ids=str)
def test_autocast_gives_the_dtype_of_the_branches_and_keeps_no_more(name, shape, options, dtype):
    block, x = block_of(name, *shape, activation=None, **options).float(), image(9, 8, 16, 16)
    x = x.to(dtype).requires_grad_() * 1  # autocast remembers what it casts leaves to
    found = {}
    for block.execution in ("branchwise", "merged"):
        kept = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            y = block(x)
        kept.pop(x.untyped_storage().data_ptr(), None)
        found[block.execution] = y.dtype, sum(storage.nbytes() for storage in kept.values())
    assert found["merged"][0] is found["branchwise"][0]
    assert found["merged"][1] < found["branchwise"][1]


def test_few_masks_of_images_are_remembered():
    window_moments._known_images.cache_clear()
    block = block_of("mobileone", 2, 2, 5, groups=2, execution="merged").float()
    for size in range(8, 18):
        block(image(2, 2, size, size, dtype=torch.float32)).sum().backward()
    assert window_moments._known_images.cache_info().currsize == 4


def test_no_mask_of_an_image_is_remembered_for_a_graph(monkeypatch):
    """What is forgotten is freed, and a graph would read what comes to stand there."""
    block, x = block_of("mobileone", 8, 8, 3, groups=8), image(3, 8, 9, 9)
    truth = step(block, x, "merged")
    window_moments._known_images.cache_clear()
    monkeypatch.setattr(window_moments, "_is_captured", lambda _: True)
    assert_same(step(block, x, "merged"), truth)
    assert window_moments._known_images.cache_info().currsize == 0


def test_processes_that_share_statistics_decide_alike():
    parts = split_dense(block_of("dbb", 8, 8, 3).branches, 2)
    decided = {
        is_shared: {
            dense_pays(parts, image(images, 8, 9, 9), for_time=False, is_shared=is_shared)
            for images in (0, 1, 9)
        }
        for is_shared in (True, False)
    }
    assert decided == {True: {True}, False: {True, False}}
