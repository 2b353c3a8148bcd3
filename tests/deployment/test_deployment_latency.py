"""Forms are timed in turn, and the fastest one that is right is marked and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployment_nets import ALWAYS, batches, images, trained_net
from test_deployment_pipeline import deploy_again
from torch import Tensor

from repblocks.deployment import latency, pipeline, quantized_forms, runtimes
from repblocks.deployment.accuracy import Agreement
from repblocks.deployment.checking import check_artifact
from repblocks.deployment.formats import check_formats, get_format
from repblocks.deployment.latency import Latency, Timing, measure_forms, time_in_turn
from repblocks.deployment.onnx_options import OnnxOptions
from repblocks.deployment.quantization import QuantizationConfig
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


def test_timings_on_a_busy_machine_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "num_cores", lambda: 1)
    times = {"0": [2.0] * 9 + [9.0], "1": [1.0] * 7 + [5.0] * 3}
    monkeypatch.setattr(latency, "time_in_turn", lambda *_: times)
    outputs = trained_net()(images())
    opened = [
        Contender(name, "here", lambda _: lambda _x: outputs) for name in ("steady", "pushed")
    ]
    found = measure_forms(opened, reference(), batch_sizes=(1,))
    [note] = [note for note in found.notes if "unsteady" in note]
    assert "1 of 2 timings are unsteady: of pushed in here (threads 1, batch 1)" in note
    assert "5.0 times the median" in note


def test_a_form_that_was_accepted_by_its_accuracy_may_be_the_fastest(clock: Clock) -> None:
    forms = [clock.contender("exact", 0.002), clock.contender("int8", 0.0, error=0.01)]
    for quantized, best in (({}, "exact"), ({"int8": False}, "exact"), ({"int8": True}, "int8")):
        found = measure_forms(
            forms, reference(), quantized=quantized, batch_sizes=(1,), seconds=0.05
        )
        assert found.fastest_forms() == [best]
        assert [t.quantized for t in found.timings] == [False, bool(quantized)] * len(
            found.timings[::2]
        )


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


def test_a_form_that_takes_pixels_is_timed_on_them(tmp_path: Path) -> None:
    options = OnnxOptions(pixels=True)
    report = deploy_again(tmp_path / "a", formats=["onnx"], onnx=options, latency=True)
    found = report.measured["latency"]
    timed = [one for one in found["timings"] if one["runtime"] == "ONNX Runtime"]
    assert {one["verified"] for one in timed} == {True}
    assert not any("onnx in ONNX Runtime was not timed" in note for note in found["notes"])


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


def few_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``auto`` stand for two forms: each takes seconds to write."""
    few = check_formats(["safetensors", "onnx"])
    monkeypatch.setattr(pipeline, "check_formats", lambda _names: few)


@pytest.mark.parametrize(("best", "kept"), [("onnx", {"model.onnx"}), ("deployed form", set())])
def test_auto_keeps_the_weights_and_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: str, kept: set[str]
) -> None:
    timing = Timing(best, "x", 1, 1, 1.0, 1.0, verified=True, fastest=True)
    few_formats(monkeypatch)
    monkeypatch.setattr(pipeline, "measure_forms", lambda *_, **__: Latency((timing,)))
    monkeypatch.setattr(pipeline, "all_contenders", lambda _a, _b, formats, _folder: list(formats))
    report = deploy_again(tmp_path / "artifact", formats=["auto"])
    names = {path.name for path in (tmp_path / "artifact").iterdir()}
    always = {"config.json", "model.safetensors", *ALWAYS}
    assert names == always | kept
    assert set(report.forms) == {"safetensors"} | ({best} & {"onnx"})
    assert report.measured["latency"]["timings"][0]["form"] == best
    deploy_again(tmp_path / "other", formats=["auto"], onnx=OnnxOptions(pixels=True))
    assert (tmp_path / "other/model.onnx").is_file()  # it was asked for


INT8 = ("onnx_int8", "model_int8.onnx")


def deploy_auto(
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    formats: tuple[str, ...] = ("auto",),
    **more: Any,
) -> tuple[DeploymentReport, dict[str, bool]]:
    """Deploy where INT8 is the fastest; gives the quantized forms, and which are accepted."""
    seen: dict[str, bool] = {}

    def measured(forms: Any, _reference: Any, *, quantized: dict[str, bool]) -> Latency:
        seen.update(quantized)
        names = [form.name for form in forms]
        best = INT8[0] if quantized.get(INT8[0]) else "onnx"
        rows = [
            Timing(n, "x", 1, 1, 1.0, 1.0, quantized.get(n, True), n in quantized, n == best)
            for n in names
        ]
        return Latency(tuple(rows))

    few_formats(monkeypatch)
    monkeypatch.setattr(pipeline, "measure_forms", measured)
    monkeypatch.setattr(pipeline, "all_contenders", lambda _a, _b, formats, _folder: list(formats))
    monkeypatch.setattr(quantized_forms, "quantizing_formats", lambda: [get_format(INT8[0])])
    more = {"validation": batches(), "calibration": [images(16)], **more}
    return deploy_again(output, formats=formats, **more), seen


def test_auto_times_int8_and_chooses_it_only_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, seen = deploy_auto(tmp_path / "a", monkeypatch)
    assert (seen, report.quantization) == ({INT8[0]: False}, None)
    assert {"model.onnx"} == {path.name for path in (tmp_path / "a").glob("model*.onnx")}
    assert "onnx_int8 | x | 1.00 ms | 1.00 ms | 8 bits, not chosen |" in report.to_markdown()
    assert "timed, not chosen, as 8 bits can change the accuracy" in report.to_markdown()
    page = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    assert "onnx_int8, x (8 bits, not chosen)" in page

    allowed = QuantizationConfig(auto=True, largest_drop=None)
    report, seen = deploy_auto(tmp_path / "b", monkeypatch, quantization=allowed)
    assert seen == {INT8[0]: True}
    assert report.quantization is not None
    assert set(report.quantization.forms) == {INT8[0]}
    assert INT8[1] in report.sizes
    assert set(report.measured["quantized_scores"]) == {INT8[0]}
    assert "model.onnx" not in report.sizes
    assert "onnx_int8" in {one.name for one in check_artifact(tmp_path / "b")}

    report, seen = deploy_auto(
        tmp_path / "c", monkeypatch, formats=("onnx",), quantization=allowed, latency=True
    )
    assert seen == {INT8[0]: False}  # nothing is chosen by its time
    assert "model_int8.onnx" not in report.sizes


def test_auto_leaves_int8_out_that_loses_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = Agreement(100, 2, 0.9, 1.0, 0.88, 1.0)
    monkeypatch.setattr(quantized_forms, "compare_predictions", lambda *_: worse)
    report, seen = deploy_auto(
        tmp_path / "a", monkeypatch, quantization=QuantizationConfig(auto=True)
    )
    assert seen == {INT8[0]: False}
    assert "onnx_int8 is not chosen: model_int8.onnx has a top-1 of 88.00%" in report.to_markdown()
    assert "model_int8.onnx" not in report.sizes
    assert "quantized_scores" not in report.measured  # it is judged, and not kept


def test_auto_goes_on_where_int8_cannot_be_written_or_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more, why in (
        ({"calibration": ()}, "No INT8 form was timed. A format that quantizes measures"),
        (
            {"validation": None, "quantization": QuantizationConfig(auto=True)},
            "No INT8 form was timed. A format that quantizes is judged by its accuracy, but no",
        ),
    ):
        report, seen = deploy_auto(tmp_path / "a", monkeypatch, **more)
        assert (seen, why in report.to_markdown()) == ({}, True)

    def broken(export: Any) -> None:
        (export.folder / INT8[1]).write_bytes(b"half")
        raise RuntimeError("no such operator")

    form = replace(get_format(INT8[0]), write=broken)
    monkeypatch.setattr(pipeline, "quantizing_formats", lambda: [form])
    with monkeypatch.context() as patch:
        patch.setattr("test_deployment_latency.get_format", lambda _name: form)
        report, seen = deploy_auto(tmp_path / "a", monkeypatch)
    assert seen == {}
    assert "onnx_int8 was not timed: model_int8.onnx could not be written: no such operator" in (
        report.to_markdown()
    )
    assert INT8[1] not in report.sizes
