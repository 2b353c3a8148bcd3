"""The kernels for a GPU: in Triton's interpreter, in its compiler, and where Triton is missing."""

import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from execution_runs import assert_same, block_of, image, step

from repblocks.algebra.axis import Axis
from repblocks.execution import on_gpu
from repblocks.execution.profit import may_pay

HERE = Path(__file__).parent
POINTERS = {"x", "centre", "parts", "weight", "image", "of_x", "total"}


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


@pytest.mark.parametrize("name", ["products", "summed", "gradient"])
@pytest.mark.parametrize(("block_c", "block_p"), [(1, 64), (8, 16)])
def test_they_compile_for_a_gpu(name, block_c, block_p, monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from repblocks.execution import triton_windows

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # unset, Triton 3.9 warns
    kernel = getattr(triton_windows, name)
    names = inspect.signature(kernel.fn).parameters
    constants = {"BLOCK_C": block_c, "BLOCK_P": block_p, "TAPS": 16, "R": 3, "S": 3}
    constants |= dict.fromkeys(["LOW_R", "LOW_S", "DILATION_R", "DILATION_S"], 1)
    constants |= {"STEP_R": 2, "STEP_S": 2}
    # A whole number that is one becomes a constant when a kernel is launched.
    constants |= {"stride_w" if block_c == 1 else "stride_c": 1, "images": 1, "columns": 1}
    constants = {key: value for key, value in constants.items() if key in names}
    kinds = {key: "*fp32" if key in POINTERS else "i32" for key in names}
    kinds |= {"x": "*bf16"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert "ptx" in built.asm


def test_without_triton_torch_does_the_work_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(on_gpu, "DEVICES", ("cpu",))
    monkeypatch.setitem(sys.modules, "triton", None)
    on_gpu._kernels.cache_clear()
    block, x = block_of("mobileone", 8, 8, 3, groups=8).float(), image(3, 8, 9, 9).float()
    with caplog.at_level(logging.INFO):
        found = step(block, x, "merged")
    on_gpu._kernels.cache_clear()
    assert_same(found, step(block, x, "branchwise"), 1e-5, 1e-4)
    (line,) = caplog.messages
    assert "merged by torch alone" in line


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
    monkeypatch.setattr(on_gpu, "DEVICES", ("cpu",))
    assert on_gpu.window_products(x, x[0], axes) is None
    assert on_gpu.window_gradient(x, x, x, x, axes) is None


def test_auto_runs_the_branches_on_devices_that_were_never_measured():
    assert may_pay(torch.empty(16, 64, 32, 32))
    assert not may_pay(torch.empty(16, 64, 32, 32, device="meta"))


def test_triton_is_not_imported_before_it_is_needed():
    code = "import sys, repblocks.blocks; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
