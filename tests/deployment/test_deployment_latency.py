"""Forms are timed in turn, and the fastest one that is right is marked and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployment_nets import ALWAYS, images, trained_net
from test_deployment_pipeline import deploy_again
from torch import Tensor

from repblocks.deployment import latency, pipeline, runtimes
from repblocks.deployment.formats import check_formats, get_format
from repblocks.deployment.latency import Latency, Timing, measure_forms, time_in_turn
from repblocks.deployment.onnx_options import OnnxOptions
from repblocks.deployment.report import DeploymentReport
from repblocks.deployment.runtimes import (
    Contender,
    all_contenders,
    file_contender,
    open_openvino,
    torch_contenders,
    torch_threads,
)
from repblocks.folding.reference import Reference
from repblocks.folding.switch import fold_blocks

Deployed = tuple[Path, DeploymentReport]


def reference() -> Reference:
    return Reference(trained_net(), images(), torch.float32)


class Clock:
    """Time passes only while a contender runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def contender(
        self, name: str, seconds: float, error: float = 0.0, fails: str = ""
    ) -> Contender:
        outputs = trained_net()(images()).detach()

        def run(x: Tensor) -> Tensor:
            self.now += seconds
            return outputs[torch.arange(len(x)) % 4] * (1 + error)

        def open_(threads: int) -> Any:
            assert torch.get_num_threads() == threads
            if fails:
                raise RuntimeError(fails)
            return run

        return Contender(name, "here", open_)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_percentiles_are_of_single_runs(clock: Clock) -> None:
    durations = iter([9, 9, *range(1, 11)])

    def run() -> None:
        clock.now += next(durations) / 1e3

    taken = time_in_turn({"a": run}, seconds=0.095)
    assert [round(one, 6) for one in taken["a"]] == [*range(1, 11)]


def test_runs_are_in_turn_and_warm() -> None:
    calls: list[str] = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    taken = time_in_turn(functions, seconds=0.0)
    assert calls == ["a", "b"] * 7
    assert {name: len(times) for name, times in taken.items()} == {"a": 5, "b": 5}


def test_the_fastest_that_is_right_is_marked_in_each_setting(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "num_cores", lambda: 3)
    forms = [
        clock.contender("slow", 0.004),
        clock.contender("wrong", 0.0, error=0.01),
        clock.contender("right", 0.001),
        clock.contender("broken", 0.0, fails="no such\nthing"),
    ]
    before = torch.get_num_threads()
    found = measure_forms(forms, reference(), batch_sizes=(1, 6), seconds=0.1)
    assert torch.get_num_threads() == before
    assert [setting for setting, _ in found.settings()] == [(1, 1), (1, 6), (3, 1), (3, 6)]
    for _, timings in found.settings():
        assert [(t.form, t.verified, t.fastest) for t in timings] == [
            ("slow", True, False),
            ("wrong", False, False),
            ("right", True, True),
        ]
        assert [round(t.median_ms, 6) for t in timings] == [4, 0, 1]
        assert [round(t.p90_ms, 6) for t in timings] == [4, 0, 1]
    assert found.fastest_forms() == ["right"]
    assert [note for note in found.notes if "torch.compile" not in note] == [
        "broken in here was not timed: no such"
    ]


def test_a_form_that_was_accepted_by_its_accuracy_may_be_the_fastest(clock: Clock) -> None:
    forms = [clock.contender("exact", 0.002), clock.contender("int8", 0.0, error=0.01)]
    for accepted, best in (((), "exact"), (("int8",), "int8")):
        found = measure_forms(forms, reference(), accepted=accepted, batch_sizes=(1,), seconds=0.05)
        assert found.fastest_forms() == [best]


@pytest.mark.parametrize("count", [1, 2])
def test_each_runtime_of_a_written_form_gives_its_function(deployed: Deployed, count: int) -> None:
    model = trained_net()
    folded, _ = fold_blocks(model)
    formats = check_formats(["safetensors", "onnx", "pt2"])
    forms = all_contenders(model, folded, formats, deployed[0])
    names = [(one.form, one.runtime) for one in forms if one.runtime != "torch.compile"]
    assert names == [
        ("training form", "PyTorch"),
        ("deployed form", "PyTorch"),
        ("deployed form", "PyTorch, channels_last"),
        ("onnx", "ONNX Runtime"),
        ("pt2", "its loader"),
    ]
    before = torch.get_num_threads()
    with torch_threads(count), torch.inference_mode():
        for one in forms:
            if one.runtime != "torch.compile":
                assert reference().compare_output(one.open(count)(images())).passed, one
    assert torch.get_num_threads() == before


def test_openvino_gives_the_function(deployed: Deployed) -> None:
    pytest.importorskip("openvino")
    run = open_openvino(deployed[0] / "model.onnx", 1)
    first = run(images(1))
    assert reference().compare_output(run(images())).passed
    torch.testing.assert_close(first, trained_net()(images(1)), rtol=1e-4, atol=1e-5)


def test_runtimes_go_by_the_file() -> None:
    form = replace(get_format("onnx"), name="some_int8", file="model_int8.xml", lossy=True)
    found = file_contender(form, Path("nowhere"), trained_net())
    assert (found.form, found.runtime) == ("some_int8", "OpenVINO")


def test_without_a_compiler_nothing_is_compiled(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names() -> list[str]:
        return [one.runtime for one in torch_contenders("x", trained_net())]

    monkeypatch.setattr(runtimes.shutil, "which", lambda _name: None)
    assert names() == ["PyTorch", "PyTorch, channels_last"]
    found = measure_forms([clock.contender("x", 0)], reference(), batch_sizes=(1,), seconds=0.01)
    assert found.notes == ("torch.compile was not timed: there is no C++ compiler.",)
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: name)
    assert names()[-1] == "torch.compile"


def test_auto_stands_for_exact_forms_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_formats(["auto"])
    assert {"safetensors", "onnx", "pt2"} <= {form.name for form in found}
    assert not any(form.lossy or form.executable for form in found)
    with_more = check_formats([found[0].name, "auto"])
    assert [form.name for form in with_more] == [form.name for form in found]
    registry = __import__("repblocks.deployment.formats._registry", fromlist=["_FORMATS"])._FORMATS
    monkeypatch.setitem(registry, "onnx", replace(get_format("onnx"), executable=True))
    assert "onnx" not in [form.name for form in check_formats(["auto"])]


@pytest.mark.parametrize(("best", "kept"), [("onnx", {"model.onnx"}), ("deployed form", set())])
def test_auto_keeps_the_weights_and_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: str, kept: set[str]
) -> None:
    timing = Timing(best, "x", 1, 1, 1.0, 1.0, verified=True, fastest=True)
    monkeypatch.setattr(pipeline, "measure_forms", lambda *_, **__: Latency((timing,)))
    monkeypatch.setattr(pipeline, "all_contenders", lambda _a, _b, formats, _folder: list(formats))
    report = deploy_again(tmp_path / "artifact", formats=["auto"])
    names = {path.name for path in (tmp_path / "artifact").iterdir()}
    always = {"config.json", "model.safetensors", *ALWAYS}
    assert names == always | kept
    assert set(report.forms) == {"safetensors"} | ({best} & {"onnx", "pt2"})
    assert report.measured["latency"]["timings"][0]["form"] == best
    deploy_again(tmp_path / "other", formats=["auto"], onnx=OnnxOptions(pixels=True))
    assert (tmp_path / "other/model.onnx").is_file()  # it was asked for
