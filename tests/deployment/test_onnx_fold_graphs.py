"""ONNX graphs of every kind are folded or left as they are, and stay the same function."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deployment.onnx_graphs import Graph, kinds, repvgg_unit
from onnx import TensorProto, helper

from repblocks.deployment.classifying import Classifier
from repblocks.deployment.onnx_fold import fold_onnx, pipeline
from repblocks.errors import ConfigurationError, VerificationError


@pytest.fixture
def folded(tmp_path):
    """Save a graph and fold it; gives the kinds of the nodes that are left."""

    def run(graph, **options):
        shapes = options.pop("shapes", None)
        source = graph.save(tmp_path / "source.onnx", **options)
        run.report = fold_onnx(source, tmp_path / "out", shapes)
        run.source, run.path = source, tmp_path / "out" / "model.onnx"
        return kinds(run.path)

    return run


def old_nodes(path):
    return [node.SerializeToString() for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_three_branches_become_one_convolution(folded, opset):
    graph = Graph(opset)
    graph.output(repvgg_unit(graph, repvgg_unit(graph, graph.input("N", 4, 6, 6), 4), 4))
    assert folded(graph) == {"Conv": 2, "Relu": 2}
    assert len(folded.report.proofs) == 3
    opset_after = onnx.load(folded.path).opset_import[0].version
    assert opset_after == opset


NAMES = ["training", "graph", "_graph", "code", "forward", "1x", "a/b", "self", "_self", "Self"]
NAMES += ["None", "lambda", "class", "__class__", "__del__", "a|b", "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_nodes_of_any_name(folded, name):
    graph = Graph()
    graph.output(repvgg_unit(graph, graph.input("N", 4, 6, 6), 4))
    graph.nodes[0].name = name
    assert folded(graph) == {"Conv": 1, "Relu": 1}
    rows = [line for line in folded.report.to_markdown().splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} <= {3, 4, 5}
    with pytest.raises(ConfigurationError, match="holds a folded ONNX file, which says nothing of"):
        Classifier(folded.path.parent)


def test_reports_name_nodes_as_the_file_does(folded):
    graph = Graph()
    x = repvgg_unit(graph, graph.input("N", 4, 6, 6), 4)
    graph.output(graph.norm(graph.add("Relu", graph.norm(x, 4)), 4))
    for node in graph.nodes:
        node.name = f"/stem.0/{node.name}"
    graph.nodes[-1].name = ""
    folded(graph)
    report = folded.report
    names = {node.name or node.output[0] for node in graph.nodes}
    assert {name for one in report.fold.folded for name in (one.site, *one.modules)} <= names
    left = {one.site for one in report.fold.left}
    assert left == {"/stem.0/BatchNormalization_8", graph.nodes[-1].output[0]}
    assert report.layers
    assert {one.path for one in report.layers} <= names
    (region,) = report.fold.folded
    assert len(region.modules) == len({*region.modules})
    assert {one.kind for one in report.layers} <= {node.op_type for node in graph.nodes}
    page = (folded.path.parent / "report.html").read_text(encoding="utf-8")
    assert region.site.startswith("/stem.0/")
    assert region.site in report.to_markdown()
    assert region.site in page


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13])
def test_products_without_a_bias_in_every_opset(folded, opset):
    graph = Graph(opset)
    x = graph.add("MatMul", graph.input("N", 6), graph.weight(6, 6))
    x = graph.add(
        "Mul", graph.add("MatMul", x, graph.weight(6, 4)), graph.constant(np.float32(0.5))
    )
    graph.output(x, rank=2)
    assert folded(graph) == {"MatMul": 1}


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 4])
def test_axes_and_groups(folded, ndim, group):
    graph = Graph()
    x = graph.input(1, 4, *(5,) * ndim)
    graph.output(repvgg_unit(graph, x, 4, ndim=ndim, group=group), rank=ndim + 2)
    assert folded(graph) == {"Conv": 1, "Relu": 1}
    (conv, _) = onnx.load(folded.path).graph.node
    assert {one.name: one.i for one in conv.attribute}["group"] == group


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_keep_their_dtype(folded, dtype):
    graph = Graph(dtype=dtype)
    graph.output(repvgg_unit(graph, graph.input("N", 4, 6, 6), 4))
    assert folded(graph) == {"Conv": 1, "Relu": 1}
    types = {one.data_type for one in onnx.load(folded.path).graph.initializer}
    assert types == {helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}
    # ONNX Runtime has no float64 convolution on CPUs.
    assert (folded.report.runtime == "onnx.reference") == (dtype is np.float64)


def test_concatenation_of_normed_branches(folded):
    graph = Graph()
    x = graph.input("N", 4, 6, 6)
    parts = [graph.norm(graph.conv(x, 4, 3, k), 3) for k in (1, 3)]
    graph.output(graph.add("Relu", graph.norm(graph.add("Concat", *parts, axis=1), 6)))
    assert folded(graph) == {"Concat": 1, "Conv": 2, "Relu": 1}


@pytest.mark.parametrize("style", ["numbers", "gathered", "cut"])
def test_channel_shuffle_between_pointwise_layers(folded, style):
    graph = Graph(opset=15)
    x = graph.input(2 if style == "numbers" else "N", 8, 4, 4)
    x = graph.conv(x, 8, 8, 1, group=2)
    sizes = [graph.constant([2, 2, 4, 4, 4]), graph.constant([0, -1, 4, 4])]
    if style != "numbers":
        batch = graph.add("Shape", x, **({"start": 0, "end": 1} if style == "cut" else {}))
        if style == "gathered":
            first = graph.add("Gather", batch, graph.constant(np.int64(0)))
            batch = graph.add("Unsqueeze", first, graph.constant([0]))
        rests = [graph.constant(one) for one in ([2, 4, 4, 4], [8, 4, 4])]
        sizes = [graph.add("Concat", batch, rest, axis=0) for rest in rests]
    wide = graph.add("Reshape", x, sizes[0])
    turned = graph.add("Transpose", wide, perm=[0, 2, 1, 3, 4])
    graph.output(graph.norm(graph.add("Reshape", turned, sizes[1]), 8))
    found = folded(graph)
    assert "BatchNormalization" not in found
    assert found["Conv"] == 1


def test_average_pooling_branch(folded):
    graph = Graph()
    x = graph.input("N", 4, 6, 6)
    pooled = graph.add("AveragePool", graph.conv(x, 4, 4, 1), kernel_shape=[3, 3], pads=[0] * 4)
    other = graph.conv(x, 4, 4, 3, pads=[0] * 4)
    graph.output(graph.add("Add", graph.norm(pooled, 4), graph.norm(other, 4)))
    assert folded(graph) == {"Conv": 1}


def test_averages_of_volumes_in_half_precision_are_left(folded):
    graph = Graph(dtype=np.float16)
    x = graph.conv(graph.input("N", 4, 5, 6, 6), 4, 4, ndim=3)
    pooled = graph.add("AveragePool", x, kernel_shape=[2] * 3)
    graph.output(graph.add("Relu", graph.norm(pooled, 4)), rank=5)
    assert folded(graph)["AveragePool"] == 1


def test_padding_on_one_side_stays_and_takes_a_norm_in(folded):
    graph = Graph()
    x = graph.input("N", 4, 6, 6)
    stem = graph.norm(graph.conv(x, 4, 4, pads=[0, 0, 1, 1], strides=[2, 2]), 4)
    graph.output(graph.add("Relu", stem))
    assert folded(graph) == {"Conv": 1, "Relu": 1}
    (conv, _) = onnx.load(folded.path).graph.node
    assert {one.name: list(one.ints) for one in conv.attribute}["pads"] == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(11, 12), (13, 11)])
def test_automatic_padding(folded, kind, stride, sizes):
    graph = Graph()
    x = graph.input("N", 4, *sizes)
    for k in (2, 3, 1):
        x = graph.conv(x, 4, 4, k, auto_pad=kind, strides=[stride] * 2, pads=None)
        x = graph.add("Relu", graph.norm(x, 4))
    graph.output(x)
    assert folded(graph) == {"Conv": 3, "Relu": 3}
    assert folded.report.kept == ()


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER"])
def test_branches_with_automatic_padding_become_one_convolution(folded, kind):
    graph = Graph()
    x = graph.input(1, 8, 15, 13)
    options = {"auto_pad": kind, "strides": [2, 2], "pads": None}
    parts = [graph.norm(graph.conv(x, 8, 8, k, **options), 8) for k in (3, 1)]
    graph.output(graph.add("Add", *parts))
    assert folded(graph) == {"Conv": 1}
    (conv,) = onnx.load(folded.path).graph.node
    attributes = {one.name: list(one.ints) for one in conv.attribute}
    assert (attributes["kernel_shape"], attributes["pads"]) == ([3, 3], [1] * 4)
    assert "auto_pad" not in attributes


def geometry(path):
    (conv,) = onnx.load(path).graph.node
    found = {one.name: list(one.ints) for one in conv.attribute}
    return found["kernel_shape"], found["pads"]


@pytest.mark.parametrize(("kind", "pads"), [("UPPER", [0, 0, 1, 1]), ("LOWER", [1, 1, 0, 0])])
@pytest.mark.parametrize("is_automatic", [True, False])
def test_branches_padded_on_one_side_become_one_convolution(folded, kind, pads, is_automatic):
    graph = Graph()
    x = graph.input("N", 8, 16, 14)
    written = {"auto_pad": f"SAME_{kind}", "pads": None}
    options = [written, written] if is_automatic else [{"pads": pads}, {"pads": [0] * 4}]
    convs = [
        graph.conv(x, 8, 8, k, strides=[2, 2], **one)
        for k, one in zip((3, 1), options, strict=True)
    ]
    graph.output(graph.add("Add", *(graph.norm(conv, 8) for conv in convs)))
    assert folded(graph) == {"Conv": 1}
    assert geometry(folded.path) == ([3, 3], pads)
    assert folded.report.after.macs == 8 * 7 * 8 * 8 * 9


@pytest.mark.parametrize(("kind", "pads"), [("UPPER", [1, 1, 2, 2]), ("LOWER", [2, 2, 1, 1])])
def test_branches_of_an_even_size_become_one_convolution(folded, kind, pads):
    graph = Graph()
    x = graph.input("N", 8, "H", "W")
    options = {"auto_pad": f"SAME_{kind}", "pads": None}
    parts = [graph.norm(graph.conv(x, 8, 8, k, **options), 8) for k in (4, 1)]
    graph.output(graph.add("Add", *parts))
    assert folded(graph, shapes=[1, 8, 9, 12]) == {"Conv": 1}
    assert geometry(folded.path) == ([4, 4], pads)


@pytest.mark.parametrize("pads", [[2, 0], [2, 0, 0, 2], [0, 2, 1, 2, 0, 1]])
def test_branches_padded_on_either_side_become_one_convolution(folded, pads):
    graph, ndim = Graph(), len(pads) // 2
    x = graph.input("N", 4, *(7, 8, 9)[:ndim])
    options = {"ndim": ndim, "bias": True}
    parts = [graph.conv(x, 4, 4, 3, pads=pads, **options), graph.conv(x, 4, 4, 1, **options)]
    graph.output(graph.add("Add", *parts), rank=ndim + 2)
    assert folded(graph) == {"Conv": 1}
    assert geometry(folded.path) == ([3] * ndim, pads)
    (region,) = folded.report.fold.folded
    assert region.modules == ("Conv_0", "Conv_1")
    assert {one.kind for one in folded.report.layers} == {"Add"}


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER"])
def test_automatic_padding_of_sizes_that_are_free_is_left(folded, kind):
    graph = Graph()
    x = graph.input("N", 8, 15, "W")
    options = {"auto_pad": kind, "strides": [2, 2], "pads": None}
    parts = [graph.norm(graph.conv(x, 8, 8, k, **options), 8) for k in (3, 1)]
    graph.output(graph.add("Add", *parts))
    found = folded(graph, shapes=[1, 8, 15, 16])
    assert found == {"Add": 1, "BatchNormalization": 1, "Conv": 2}  # 1x1 is never padded
    reasons = [(one.name, one.reason) for one in folded.report.kept]
    assert reasons == [("Conv_0", "Its padding depends on the size of the input.")]


@pytest.mark.parametrize("size", [None, -1, 0])
def test_what_a_file_says_of_inner_sizes_is_not_relied_on(tmp_path, size):
    graph = Graph()
    x = graph.input("N", 4, 16, 16)
    for _ in range(2):
        x = graph.conv(x, 4, 4, 3, auto_pad="SAME_UPPER", strides=[2, 2], pads=None)
        x = graph.add("Relu", graph.norm(x, 4))
    graph.output(x)
    model = onnx.shape_inference.infer_shapes(onnx.load(graph.save(tmp_path / "static.onnx")))
    for axis in (2, 3):  # as tools do that set sizes free afterwards
        dim = model.graph.input[0].type.tensor_type.shape.dim[axis]
        dim.Clear()
        if size is not None:
            dim.dim_value = size
    onnx.save(model, tmp_path / "source.onnx")
    report = fold_onnx(tmp_path / "source.onnx", tmp_path / "out", [1, 4, 16, 16])
    found = kinds(tmp_path / "out" / "model.onnx")
    assert found == {"Conv": 2, "BatchNormalization": 2, "Relu": 2}
    assert {one.shapes[0][2:] for one in report.proofs} >= {(16, 16), (80, 112), (81, 113)}


def test_sums_of_several_terms(folded):
    graph = Graph()
    x = graph.input("N", 4, 6, 6)
    other = graph.add("Sigmoid", x)
    terms = [graph.norm(graph.conv(x, 4, 4, k), 4) for k in (3, 1)]
    graph.output(graph.add("Sum", *terms, other), graph.add("Sum", other, x, other))
    assert folded(graph) == {"Conv": 1, "Sigmoid": 1, "Sum": 2}


def test_arithmetic_with_constants(folded):
    graph = Graph()
    x = graph.conv(graph.input("N", 4, 6, 6), 4, 4)
    x = graph.add("Mul", graph.weight(1, 4, 1, 1), x)
    x = graph.add("Sub", graph.weight(4, 1, 1), x)
    x = graph.add("Div", x, graph.constant(np.float32(3)))
    graph.output(graph.add("Relu", graph.add("Neg", graph.add("Add", x, graph.weight(4, 1, 1)))))
    assert folded(graph) == {"Conv": 1, "Relu": 1}


def test_linear_layers(folded):
    graph = Graph()
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", graph.input("N", 4, 6, 6)))
    hidden = graph.add("Gemm", flat, graph.weight(6, 4), graph.weight(6), transB=1, alpha=0.5)
    hidden = graph.add("Relu", graph.norm(hidden, 6))
    product = graph.add("MatMul", hidden, graph.weight(6, 3))
    graph.output(graph.norm(graph.add("Add", product, graph.weight(3)), 3), rank=2)
    assert folded(graph) == {"Flatten": 1, "Gemm": 2, "GlobalAveragePool": 1, "Relu": 1}


def test_products_on_the_last_of_three_axes(folded):
    graph = Graph()
    product = graph.add("MatMul", graph.input("N", 5, 4), graph.weight(4, 3))
    scaled = graph.add("Mul", graph.add("Add", product, graph.weight(3)), graph.weight(3))
    graph.output(graph.add("Relu", scaled), rank=3)
    assert folded(graph) == {"Add": 1, "MatMul": 1, "Relu": 1}


def test_transposed_convolution_takes_its_norm_in(folded):
    graph = Graph()
    x = graph.input("N", 4, 5, 5)
    up = graph.add("ConvTranspose", x, graph.weight(4, 6, 2, 2), strides=[2, 2])
    graph.output(graph.norm(up, 6))
    assert folded(graph) == {"ConvTranspose": 1}


def test_arithmetic_of_weights_is_evaluated(folded):
    graph = Graph()
    x = graph.input("N", 4, 6, 6)
    kernel = graph.add("Mul", graph.weight(4, 4, 3, 3), graph.weight(4, 1, 1, 1))
    kernel = graph.add("Pad", kernel, graph.constant([0, 0, 1, 1, 0, 0, 1, 1]))
    conv = graph.add("Conv", x, kernel, pads=[2, 2, 2, 2])
    graph.output(graph.norm(conv, 4))
    assert folded(graph) == {"Conv": 1}


def test_a_value_with_several_readers_is_computed_once(folded):
    graph = Graph()
    x = graph.input("N", 4, 6, 6)
    shared = graph.norm(graph.conv(x, 4, 4), 4)
    first, second = graph.add("Relu", shared), graph.add("Sigmoid", shared)
    graph.output(graph.add("Mul", first, second), shared)
    assert folded(graph) == {"Conv": 1, "Mul": 1, "Relu": 1, "Sigmoid": 1}
    assert [one.name for one in onnx.load(folded.path).graph.output] == ["mul4_0", shared]


def test_shared_initializers_stay_for_who_still_reads_them(folded):
    graph = Graph()
    x, weight = graph.input("N", 4, 6, 6), graph.weight(4, 4, 3, 3, name="shared")
    normed = graph.norm(graph.add("Conv", x, weight, pads=[1] * 4), 4)
    plain = graph.add("Relu", graph.add("Conv", graph.add("Relu", normed), weight))
    graph.output(plain)
    assert folded(graph) == {"Conv": 2, "Relu": 2}
    names = {one.name for one in onnx.load(folded.path).graph.initializer}
    assert "shared" in names
    assert len(names) == 3


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs_count_as_constants(folded, ir_version):
    graph = Graph(opset=9, ir_version=ir_version)
    graph.output(repvgg_unit(graph, graph.input("N", 4, 6, 6), 4))
    assert folded(graph, constants_are_inputs=True) == {"Conv": 1, "Relu": 1}
    graph = onnx.load(folded.path).graph
    constants = [one.name for one in graph.initializer]
    assert [one.name for one in graph.input] == ["x", *(constants if ir_version == 3 else [])]


def test_several_inputs_and_outputs_keep_their_names(folded):
    graph = Graph()
    image, other = graph.input("N", 4, 6, 6, name="image"), graph.input("N", 4, 6, 6, name="other")
    parts = [graph.norm(graph.conv(one, 4, 4), 4) for one in (image, other)]
    total = graph.add("Add", *parts)
    graph.output(total, parts[0], graph.add("Identity", image))
    assert folded(graph)["Conv"] == 2
    model = onnx.load(folded.path)
    assert [one.name for one in model.graph.input] == ["image", "other"]
    assert [one.name for one in model.graph.output] == [one.name for one in graph.outputs]


def test_what_is_not_folded_stays_byte_for_byte(folded):
    graph = Graph(opset=17)
    x = repvgg_unit(graph, graph.input("N", 4, 6, 6), 4)
    start = len(graph.nodes)
    x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("HardSwish", x)
    x = graph.add("Resize", x, "", graph.constant(np.float32([1, 1, 2, 2])), mode="nearest")
    mean = graph.add("ReduceMean", x, axes=[2, 3], keepdims=1)
    gate = graph.add("Sigmoid", graph.conv(graph.add("Relu", graph.conv(mean, 4, 2, 1)), 2, 4, 1))
    graph.output(graph.add("Mul", x, gate))
    folded(graph)
    kept = [node.SerializeToString() for node in graph.nodes[start:]]
    assert old_nodes(folded.path)[-len(kept) :] == kept
    old = {one.name: one for one in graph.constants}
    same = [one for one in onnx.load(folded.path).graph.initializer if one.name in old]
    assert len(same) == 3
    assert all(one == old[one.name] for one in same)


def test_control_flow_reads_folded_values(folded):
    graph = Graph()
    x = graph.input("N", 4, 6, 6)
    normed = graph.norm(graph.conv(x, 4, 4), 4)
    largest = graph.add("ReduceMax", x, keepdims=0)
    condition = graph.add("Greater", largest, graph.constant(np.float32(9)))
    branches = {}
    for key, op_type in (("then_branch", "Relu"), ("else_branch", "Sigmoid")):
        value = helper.make_tensor_value_info(f"{op_type}_out", TensorProto.FLOAT, (None,) * 4)
        node = helper.make_node(op_type, [normed], [value.name])
        branches[key] = helper.make_graph([node], key, [], [value])
    graph.output(repvgg_unit(graph, graph.add("If", condition, **branches), 4))
    assert folded(graph) == {"Conv": 2, "Greater": 1, "If": 1, "ReduceMax": 1, "Relu": 1}


def test_functions_and_operators_of_the_runtime_stay(folded):
    graph = Graph(opset=17)
    x = graph.norm(graph.conv(graph.input("N", 4, 6, 6), 4, 4), 4)
    graph.nodes.append(helper.make_node("Twice", [x], ["twice"], domain="own"))
    graph.nodes.append(
        helper.make_node("QuickGelu", ["twice"], ["quick"], domain="com.microsoft", alpha=1.5)
    )
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    graph.output(graph.norm(graph.conv("quick", 4, 4), 4))
    found = folded(graph, functions=[twice], domains=["own", "com.microsoft"])
    assert found == {"Conv": 2, "QuickGelu": 1, "Twice": 1}


def test_quantized_weights_are_left(folded):
    graph = Graph()
    x = graph.input("N", 4, 6, 6)
    scale, zero = graph.constant(np.float32(0.02)), graph.constant(np.int8(0))
    raw = graph.constant(graph.random.integers(-99, 99, (4, 4, 3, 3), dtype=np.int8))
    kernel = graph.add("DequantizeLinear", raw, scale, zero)
    graph.output(graph.norm(graph.add("Conv", x, kernel, pads=[1] * 4), 4))
    assert folded(graph) == {"BatchNormalization": 1, "Conv": 1, "DequantizeLinear": 1}
    assert [one.reason for one in folded.report.kept] == ["Its weights are quantized."]


def test_norms_in_training_mode_are_left(folded):
    graph = Graph(opset=15)
    graph.output(graph.norm(graph.conv(graph.input("N", 4, 6, 6), 4, 4), 4, training_mode=1))
    graph.nodes[-1].output.extend(["mean", "variance"])
    assert folded(graph) == {"BatchNormalization": 1, "Conv": 1}
    assert [one.op_type for one in folded.report.kept] == ["BatchNormalization"]


@pytest.mark.parametrize(
    ("shape", "is_kept"),
    [
        *(((2, 1), True), ((4, 1), True), ((2, 4), True)),
        *(((), False), ((1,), False), ((4,), False), ((1, 1), False), ((1, 4), False)),
    ],
)
def test_what_a_product_adds_may_be_broadcast_in_any_way(folded, shape, is_kept):
    rows = shape[0] if len(shape) == 2 and shape[0] > 1 else 2
    graph = Graph()
    x = graph.add("MatMul", graph.input(rows, 6), graph.weight(6, 6))
    shift = graph.constant(graph.random.normal(size=shape).astype(np.float32))
    x = graph.add("Gemm", x, graph.weight(6, 4), shift, beta=2.0)
    graph.output(x, rank=2)
    assert folded(graph) == ({"Gemm": 1, "MatMul": 1} if is_kept else {"Gemm": 1})
    kept = [(one.op_type, one.reason) for one in folded.report.kept]
    assert kept == [("Gemm", "What it adds is not one number a channel.")] * is_kept


def test_free_sizes_are_folded_at_given_ones_and_stay_free(folded):
    graph = Graph()
    graph.output(repvgg_unit(graph, graph.input("N", 4, "H", "W"), 4))
    assert folded(graph, shapes=[2, 4, 6, 6]) == {"Conv": 1, "Relu": 1}
    shapes = [one.shapes for one in folded.report.proofs]
    others = [((2, 4, 70, 102),), ((2, 4, 71, 103),)]
    assert shapes == [*(((n, 4, 6, 6),) for n in (1, 2, 5)), *others]
    assert all(one.folded.tolerance < 1e-4 for one in folded.report.proofs)
    assert folded.report.unproven == ()
    session = onnxruntime.InferenceSession(folded.path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((3, 4, 9, 7), np.float32)})[0].shape == (3, 4, 9, 7)


def test_a_fold_that_is_exact_at_one_size_alone_is_seen(tmp_path, monkeypatch):
    graph = Graph(opset=17)
    x = repvgg_unit(graph, graph.input("N", 4, "H", 6), 4)
    graph.output(graph.add("Resize", x, "", graph.constant(np.float32([1, 1, 2, 2]))))
    source = graph.save(tmp_path / "source.onnx")
    written = pipeline.assemble

    def of_one_size(*arguments):
        model = written(*arguments)
        (resize,) = [node for node in model.graph.node if node.op_type == "Resize"]
        sizes = onnx.numpy_helper.from_array(np.int64([12, 12]), "sizes")
        model.graph.initializer.append(sizes)
        resize.input[2:] = ["", "sizes"]
        resize.attribute.append(helper.make_attribute("axes", [2, 3]))
        model.opset_import[0].version = 18
        return model

    fold_onnx(source, tmp_path / "good", [1, 4, 6, 6])
    monkeypatch.setattr(pipeline, "assemble", of_one_size)
    with pytest.raises(
        VerificationError,
        match=r"shapes {'': \(2, 4, 12, 12\)}, the original's {'': \(2, 4, 140, 12\)}",
    ):
        fold_onnx(source, tmp_path / "out", [1, 4, 6, 6])
    assert not (tmp_path / "out").exists()


def test_what_the_original_does_not_take_is_named_with_its_reason(folded):
    graph = Graph()
    x = graph.add("Flatten", repvgg_unit(graph, graph.input("N", 4, "H", "W"), 4))
    graph.output(graph.add("MatMul", x, graph.weight(144, 3)), rank=2)
    assert folded(graph, shapes=[1, 4, 6, 6])["Conv"] == 1
    assert len(folded.report.proofs) == 3
    left = folded.report.unproven
    assert [one.shapes for one in left] == [((2, 4, 70, 102),), ((2, 4, 71, 103),)]
    assert all("MatMul" in one.reason for one in left)
    for name in ("report.md", "report.html"):
        assert "2x4x70x102" in (folded.path.parent / name).read_text("utf-8")
    assert "not compared at 2x4x70x102" in [*folded.report.to_table().columns[0].cells]


def test_external_data_is_read(tmp_path):
    graph = Graph()
    graph.output(repvgg_unit(graph, graph.input("N", 4, 6, 6), 4))
    source = tmp_path / "big.onnx"
    onnx.save(graph.model(), source, save_as_external_data=True, location="w.bin", size_threshold=0)
    fold_onnx(source, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("config.json", "manifest.json", "model.onnx", "report.html", "report.json", "report.md")
    ]


def test_a_folded_file_has_nothing_more_to_fold(folded, tmp_path):
    graph = Graph()
    graph.output(repvgg_unit(graph, graph.input("N", 4, 6, 6), 4))
    folded(graph)
    report = fold_onnx(folded.path, tmp_path / "again")
    assert report.fold.folded == ()
    assert old_nodes(tmp_path / "again" / "model.onnx") == old_nodes(folded.path)


def test_metadata_is_kept(tmp_path):
    graph = Graph()
    graph.output(graph.norm(graph.conv(graph.input("N", 4, 6, 6), 4, 4), 4))
    model = graph.model()
    helper.set_model_props(model, {"labels": "cat,dog"})
    model.producer_name = "another framework"
    onnx.save(model, tmp_path / "source.onnx")
    fold_onnx(tmp_path / "source.onnx", tmp_path / "out")
    after = onnx.load(tmp_path / "out" / "model.onnx")
    assert after.producer_name == "another framework"
    assert after.metadata_props[0].value == "cat,dog"


def test_it_is_deterministic(tmp_path):
    files = []
    for name in ("a", "b"):
        graph = Graph()
        graph.output(repvgg_unit(graph, graph.input("N", 4, 6, 6), 4))
        fold_onnx(graph.save(tmp_path / "source.onnx"), tmp_path / name)
        names = ("model.onnx", "report.json", "report.html", "report.md", "manifest.json")
        files.append([(tmp_path / name / f).read_bytes() for f in names])
    assert files[0] == files[1]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
