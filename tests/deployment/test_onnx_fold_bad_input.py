"""A file that cannot be folded with proof ends in one clear message, and leaves nothing behind."""

import numpy as np
import onnx
import pytest
from deployment.onnx_graphs import Graph, repvgg_unit
from onnx import TensorProto, helper

from repblocks.deployment.checking import check_artifact
from repblocks.deployment.onnx_fold import explain_onnx, fold_onnx, pipeline
from repblocks.errors import ConfigurationError, VerificationError


def unit(*sizes, **options):
    graph = Graph(**options)
    graph.output(repvgg_unit(graph, graph.input(*sizes), 4))
    return graph


def refused(path, tmp_path, shapes=None, error=ConfigurationError):
    """Fold a file and give the message; neither folder nor file may be there afterwards."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error) as caught:
        fold_onnx(path, tmp_path / "deep" / "out", shapes)
    assert sorted(tmp_path.rglob("*")) == before
    return str(caught.value)


def test_no_such_file(tmp_path):
    assert "There is no ONNX file at" in refused(tmp_path / "none.onnx", tmp_path)
    assert "There is no ONNX file at" in refused(tmp_path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"model", b"{}", bytes(99)])
def test_another_file(tmp_path, content):
    path = tmp_path / "picture.onnx"
    path.write_bytes(content)
    assert "picture.onnx is no ONNX file" in refused(path, tmp_path)


@pytest.mark.parametrize("name", ["net.json", "net.textproto"])
def test_what_the_name_ends_in_says_nothing(tmp_path, name):
    path = unit("N", 4, 6, 6).save(tmp_path / "net.onnx")
    assert len(explain_onnx(path.rename(tmp_path / name)).folded) == 1
    (tmp_path / name).write_text('{"a": 1}')
    assert f"{name} is no ONNX file" in refused(tmp_path / name, tmp_path)


@pytest.mark.parametrize("text", [b"BatchNormalization_1", b"graph", b"batchnormalization1_0"])
def test_a_name_that_is_no_text(tmp_path, text):
    path = unit("N", 4, 6, 6).save(tmp_path / "net.onnx")
    content = path.read_bytes()
    assert text in content
    path.write_bytes(content.replace(text, b"\xff" + text[1:]))
    assert "net.onnx is a damaged ONNX file" in refused(path, tmp_path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path, share):
    path = unit("N", 4, 6, 6).save(tmp_path / "cut.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "cut.onnx is no " in refused(path, tmp_path)


def test_missing_and_short_external_data(tmp_path):
    path, data = tmp_path / "big.onnx", tmp_path / "w.bin"
    model = unit("N", 4, 6, 6).model()
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    data.write_bytes(data.read_bytes()[:50])
    assert "files beside it, which cannot be read" in refused(path, tmp_path)
    data.unlink()
    assert "files beside it, which cannot be read" in refused(path, tmp_path)


def test_external_data_outside_its_folder(tmp_path):
    path = tmp_path / "in" / "big.onnx"
    path.parent.mkdir()
    model = unit("N", 4, 6, 6).model()
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (path.parent / "w.bin").rename(tmp_path / "w.bin")
    model = onnx.load(path, load_external_data=False)
    for one in model.graph.initializer:
        next(e for e in one.external_data if e.key == "location").value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    assert "files beside it, which cannot be read" in refused(path, tmp_path)


def test_a_graph_that_is_not_valid(tmp_path):
    graph = unit("N", 4, 6, 6)
    graph.nodes[0].input[0] = "nowhere"
    message = refused(graph.save(tmp_path / "bad.onnx"), tmp_path)
    assert "is no valid ONNX model: " in message
    assert "nowhere" in message
    graph = unit("N", 4, 6, 6)
    graph.nodes[0].op_type = "Convolve"
    assert "Convolve" in refused(graph.save(tmp_path / "bad.onnx"), tmp_path)


def test_operators_that_nothing_here_runs(tmp_path):
    graph = unit("N", 4, 6, 6)
    last = graph.outputs[0].name
    graph.nodes.append(helper.make_node("Magic", [last], ["end"], domain="my.ops"))
    graph.output("end")
    message = refused(graph.save(tmp_path / "c.onnx", domains=["my.ops"]), tmp_path)
    assert "could not be verified, and nothing was written" in message
    assert "my.ops.Magic" in message


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (None, "'x' of the ONNX graph has free sizes: [?, 4, ?, ?]. Give those"),
        ([1, 4, 6], "onnx_shape [1, 4, 6] does not fit input 'x' of the ONNX graph, which is [?, "),
        ([1, 3, 6, 6], "onnx_shape [1, 3, 6, 6] does not fit"),
        ([1, 4, 0, 6], "onnx_shape must hold positive integers, got [1, 4, 0, 6]"),
        ([1, 4, "6", 6], "onnx_shape must hold positive integers"),
        ([1, 4, 10**5, 10**5], "40,000,000,000 values, where 268,435,456 are allowed"),
        ({"y": [1, 4, 6, 6]}, "onnx_shape names 'y', which is no input. Inputs: x."),
    ],
)
def test_sizes_that_are_free_or_do_not_fit(tmp_path, shapes, message):
    path = unit("N", 4, "H", "W").save(tmp_path / "free.onnx")
    assert message in refused(path, tmp_path, shapes)


def test_a_shape_without_a_name_where_there_are_several_inputs(tmp_path):
    graph = Graph()
    parts = [graph.input("N", 4, "H", "W", name=name) for name in ("a", "b")]
    graph.output(graph.add("Add", *parts))
    path = graph.save(tmp_path / "two.onnx")
    message = refused(path, tmp_path, [1, 4, 6, 6])
    assert "must name the inputs, as there are several: a, b." in message
    named = {"a": [1, 4, 6, 6], "b": [1, 4, 6, 6]}
    proofs = fold_onnx(path, tmp_path / "out", named).proofs
    others = [(5, 4, 6, 6), (2, 4, 70, 102), (2, 4, 71, 103)]
    assert [one.shapes[0] for one in proofs[-3:]] == others
    assert len(proofs) == 5


def test_sizes_that_the_graph_does_not_take(tmp_path):
    graph = Graph()
    flat = graph.add("Flatten", graph.input("N", 4, "H", "W"))
    graph.output(graph.add("MatMul", flat, graph.weight(144, 3)), rank=2)
    message = refused(graph.save(tmp_path / "fixed.onnx"), tmp_path, [1, 4, 7, 7])
    assert "cannot be run here" in message


def test_old_versions_and_strange_inputs(tmp_path):
    path = unit("N", 4, 6, 6, opset=6, ir_version=3).save(
        tmp_path / "old.onnx", constants_are_inputs=True
    )
    assert "uses opset 6; ONNX Runtime runs 7 and later" in refused(path, tmp_path)
    graph = Graph()
    graph.output(graph.add("Identity", graph.input(2, kind=TensorProto.STRING)), rank=1)
    message = refused(graph.save(tmp_path / "text.onnx"), tmp_path)
    assert "'x' of the ONNX graph must be a tensor of float32, " in message
    assert message.endswith("got string.")


def test_graphs_that_depend_on_nothing_or_on_chance(tmp_path):
    graph = Graph()
    graph.output(graph.add("Neg", graph.weight(3)), rank=1)
    assert "has no input" in refused(graph.save(tmp_path / "a.onnx"), tmp_path)
    graph.input(2)
    assert "No output of the ONNX graph depends" in refused(
        graph.save(tmp_path / "a.onnx"), tmp_path
    )
    graph = Graph()
    x = graph.input("N", 4)
    mode = graph.constant(np.array(True))
    graph.output(graph.add("Dropout", x, graph.constant(np.float32(0.5)), mode), rank=2)
    assert "draws random numbers (Dropout)" in refused(graph.save(tmp_path / "a.onnx"), tmp_path)
    graph.constants[0] = onnx.numpy_helper.from_array(np.array(False), mode)
    explain_onnx(graph.save(tmp_path / "a.onnx"))
    graph = Graph()
    x = graph.input("N", 4)
    graph.output(graph.add("Add", x, graph.add("RandomNormalLike", x)), rank=2)
    assert "draws random numbers (RandomNormalLike)" in refused(
        graph.save(tmp_path / "a.onnx"), tmp_path
    )


def test_the_source_is_never_in_the_output(tmp_path):
    folder = tmp_path / "out"
    fold_onnx(unit("N", 4, 6, 6).save(tmp_path / "good.onnx"), folder)
    unit("N", 4, 6, 6).save(folder / "other.onnx")
    for name in ("other.onnx", "model.onnx"):
        before = (folder / name).read_bytes()
        with pytest.raises(ConfigurationError, match=f"{name} lies in the output"):
            fold_onnx(folder / name, folder)
        assert (folder / name).read_bytes() == before


def test_the_folder_passes_the_check_until_it_is_damaged(tmp_path):
    folder = tmp_path / "out"
    fold_onnx(unit("N", 4, 6, 6).save(tmp_path / "good.onnx"), folder)
    found = {one.name: one.status for one in check_artifact(folder)}
    passed = dict.fromkeys(
        ("config.json", "model.onnx", "report.html", "report.json", "report.md"), "passed"
    )
    assert found == {**passed, "forms": "skipped"}
    (folder / "model.onnx").write_bytes(b"")
    assert {one.name for one in check_artifact(folder) if one.status == "failed"} == {"model.onnx"}


def test_a_wrong_fold_is_seen_and_not_written(tmp_path, monkeypatch):
    path = unit("N", 4, 6, 6).save(tmp_path / "good.onnx")
    written = pipeline.assemble

    def wrong(*arguments):
        model = written(*arguments)
        (weight,) = [one for one in model.graph.initializer if len(one.dims) == 4]
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return model

    monkeypatch.setattr(pipeline, "assemble", wrong)
    message = refused(path, tmp_path, error=VerificationError)
    assert message.startswith("The folded file, run in ONNX Runtime")


def test_a_file_that_was_read_wrongly_is_seen(tmp_path, monkeypatch):
    path = unit("N", 4, 6, 6).save(tmp_path / "good.onnx")
    translate = pipeline.translate

    def wrong(*arguments):
        found = translate(*arguments)
        found.module.BatchNormalization_1.eps = 0.01
        return found

    monkeypatch.setattr(pipeline, "translate", wrong)
    message = refused(path, tmp_path, error=VerificationError)
    assert message.startswith("The original file, run in ONNX Runtime")


def test_the_plan_alone_writes_nothing(tmp_path):
    path = unit("N", 4, 6, 6).save(tmp_path / "good.onnx")
    report = explain_onnx(path)
    assert len(report.folded) == 1
    assert report.macs_after < report.macs_before
    assert list(tmp_path.iterdir()) == [path]
