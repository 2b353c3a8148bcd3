"""The kernels for a GPU: in Triton's interpreter, in its compiler, and where Triton is missing."""

import inspect
import logging
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from execution_runs import assert_same, block_of, image, step

from repblocks.algebra.axis import Axis
from repblocks.execution import launched_for_free, on_gpu, triton_kernels
from repblocks.execution.profit import may_pay, merging_pays, one_pass_pays
from repblocks.execution.reading import split

HERE = Path(__file__).parent


def test_in_the_interpreter_they_compute_what_torch_does():
    pytest.importorskip("triton")
    runs = str(HERE / "execution_gpu_runs.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", runs],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " skipped" not in done.stdout


KERNELS = {
    "triton_windows": ["products", "summed", "moments"],
    "triton_window_gradients": ["weights", "inner_gradient", "gradient"],
    "triton_moments": ["moments", "shifted"],
    "triton_sums": ["statistics", "normed_sum", "gradient_sums", "gradients"],
    "triton_rows": ["statistics", "statistics_gradient", "merged", "merged_gradient"],
    "triton_channels": ["products", "mapped"],
}
#: What kernels take: images, one or several of them, vectors, what is not whole, and numbers.
IMAGES = {"x", "of_x", "total", "other", "y", "g"}
SEVERAL = {"images", "of_images", "weights", "biases", "running_means", "running_variances"}
VECTORS = {"centre", "parts", "weight", "lags", "means", "inverses", "factors", "shift", "sums"}
VECTORS |= {"share", "border", "mean", "covariance", "of_mean", "of_covariance", "biases", "bias"}
VECTORS |= {"rows", "product", "offset", "spread", "averages", "unbiased", "kept", "of_rows"}
VECTORS |= {"of_means", "of_spread", "found", "weighted", "of_moments", "kernel", "scales"}
VECTORS |= {"of_kernel", "of_shift", "of_factors", "of_biases"}
FRACTIONS = {"epsilon", "momentum", "factor", "of_weight", "of_bias"}


def kind_of(module, kernel, name):
    is_several = (
        name in {"factors", "biases"}
        if (module, kernel) == ("triton_rows", "merged")
        else (name in SEVERAL and module in {"triton_moments", "triton_sums"})
    )
    if is_several:
        return ("*bf16", "*fp32") if "images" in name else ("*fp32", "*fp32")
    if (module, kernel, name) == ("triton_windows", "moments", "images"):
        return "*fp32"
    if name in IMAGES:
        return "*bf16"
    is_number = (kernel, name) == ("gradient", "rows")
    is_vector = name in VECTORS and not is_number
    return "*fp32" if is_vector else "fp32" if name in FRACTIONS else "i32"


@pytest.mark.parametrize(("block_c", "block_p"), [(1, 64), (8, 16)])
@pytest.mark.parametrize(
    ("module", "name"), [(m, n) for m, names in KERNELS.items() for n in names]
)
def test_they_compile_for_a_gpu(module, name, block_c, block_p, monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # unset, Triton 3.9 warns
    kernel = getattr(import_module(f"repblocks.execution.{module}"), name)
    names = inspect.signature(kernel.fn).parameters
    constants = {"BLOCK_C": block_c, "BLOCK_P": block_p, "BLOCK_N": 64, "R": 3, "S": 3}
    constants |= dict.fromkeys(["LOW_R", "LOW_S", "DILATION_R", "DILATION_S", "TOP", "LEFT"], 1)
    constants |= {"STEP_R": 2, "STEP_S": 2, "FIRST": 0, "LAST": 9, "BRANCHES": 2, "INPUTS": 0}
    constants |= {"BIASES": 2, "BLOCK_D": 64, "BLOCK_K": 16, "BLOCK_L": 32, "BOTH": True}
    constants |= {"BLOCK_O": 32, "IS_SHIFTED": True}
    if module == "triton_channels":
        constants["BLOCK_C"] = 64
    if (module, name) == ("triton_windows", "moments"):
        constants["BLOCK_N"] = 8
    constants |= {"RECTIFIED": True, "IS_ALONE": False}
    # A whole number that is one becomes a constant when a kernel is launched.
    constants |= {"stride_c" if block_c > 1 else "stride_w": 1, "columns": 1}
    constants = {key: value for key, value in constants.items() if key in names}
    kinds = {key: kind_of(module, name, key) for key in names}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert "ptx" in built.asm


def clear():
    triton_kernels.loaded.cache_clear()
    triton_kernels.say_once.cache_clear()


def test_without_triton_torch_does_the_work_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(triton_kernels, "DEVICES", ("cpu",))
    monkeypatch.setitem(sys.modules, "triton", None)
    clear()
    block, x = block_of("mobileone", 8, 8, 3, groups=8).float(), image(3, 8, 9, 9).float()
    with caplog.at_level(logging.INFO):
        found = step(block, x, "merged")
    clear()
    assert_same(found, step(block, x, "branchwise"), 1e-5, 1e-4)
    (line,) = caplog.messages
    assert "slower without the kernels for a GPU" in line


@pytest.mark.parametrize(
    ("x", "axes"),
    [
        (image(3, 4, 9), (Axis(3),)),
        (image(3, 4, 9, 9), (Axis(3), Axis(3))),
        (image(3, 4, 9, 9).float(), (Axis(7), Axis(7))),
        (image(3, 4, 9, 9).float().to("meta"), (Axis(3), Axis(3))),
    ],
    ids=["1-d", "double", "large", "device"],
)
def test_what_does_not_suit_them_is_left_to_torch(x, axes, monkeypatch):
    monkeypatch.setattr(triton_kernels, "DEVICES", ("cpu",))
    assert on_gpu.window_moments(x, x[0], axes, x, x) is None
    assert on_gpu.window_gradient(x, x, (x, x), x, axes, 1.0) is None


class Launches:
    """Stands for a module of kernels, and keeps the grids that they are launched with."""

    def __init__(self):
        self.grids = []

    def __getattr__(self, name):
        return self

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *_: None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_grids_for_large_images_can_be_launched(layout, stride, monkeypatch):
    launches = Launches()
    monkeypatch.setattr(triton_kernels, "DEVICES", ("cpu",))
    monkeypatch.setattr(triton_kernels, "loaded", lambda _: launches)
    axes = [Axis(3, stride, 1, 1)] * 2
    x = torch.empty(1, 2, 2**13, 2**13, dtype=torch.bfloat16, memory_format=layout)  # untouched
    mean, weight = torch.zeros(2, 9), torch.zeros(2, 9, 9)
    on_gpu.window_moments(x, x[0, :, 0, 0].float(), axes, mean[:1], weight[:1])
    on_gpu.window_gradient(x, mean, (mean, weight), x, axes, 1.0)
    assert len(launches.grids) >= 3
    assert all(max(rest, default=1) < 2**16 for _, *rest in launches.grids)
    many = torch.empty(2**16, 1, 4, 4)
    assert not on_gpu.serves(many, axes)
    assert on_gpu.serves(many[1:], axes)


def test_kernels_run_on_the_current_device_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for index in (0, 1):
        x = Mock(spec=torch.Tensor, device=torch.device("cuda", index), dtype=torch.float32)
        x.shape = (1,)
        monkeypatch.setattr(triton_kernels, "Tensor", type(x))
        assert triton_kernels.suit(x) is bool(index)


def test_auto_runs_the_branches_on_devices_that_were_never_measured():
    assert may_pay(torch.empty(16, 64, 32, 32))
    assert not may_pay(torch.empty(16, 64, 32, 32, device="meta"))


def test_auto_merges_large_images_on_a_gpu_in_what_was_measured(monkeypatch):
    monkeypatch.setattr(triton_kernels, "DEVICES", ("meta",))
    kinds = [(1, {}), (3, {"groups": 64}), (3, {"groups": 64, "stride": 2}), (5, {"groups": 64})]
    blocks = [block_of("mobileone", 64, 64, k, **options) for k, options in kinds]
    parts = [split(block.branches, 2) for block in blocks]
    for size, dtype, layout, pays, pays_replayed in [
        (64, torch.bfloat16, torch.channels_last, True, True),
        (63, torch.bfloat16, torch.channels_last, False, True),
        (7, torch.bfloat16, torch.channels_last, False, False),
        (92, torch.float32, torch.channels_last, False, False),
        (92, torch.bfloat16, torch.contiguous_format, False, False),
    ]:
        x = torch.empty(256, 64, size, size, device="meta", dtype=dtype, memory_format=layout)
        assert one_pass_pays(x) is pays
        assert [merging_pays(own, x) for own in parts] == [pays, pays, False, False]
        with launched_for_free():
            assert one_pass_pays(x) is pays_replayed
            assert [merging_pays(own, x) for own in parts] == [pays_replayed] * 3 + [False]


def test_auto_does_not_merge_many_channels_of_few_positions_on_a_gpu(monkeypatch):
    monkeypatch.setattr(triton_kernels, "DEVICES", ("meta",))
    parts = split(block_of("mobileone", 512, 512, 1).branches, 2)
    for size, pays in ((6, True), (5, False)):
        x = torch.empty(256, 512, size, size, device="meta", dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last)
        with launched_for_free():
            assert merging_pays(parts, x) is pays


def test_triton_is_not_imported_before_it_is_needed():
    code = "import sys, repblocks.blocks; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
