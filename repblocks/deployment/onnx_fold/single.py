"""One ONNX node as a function of its activations: what is not folded runs as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from repblocks.deployment.onnx_fold.reading import graphs_of
from repblocks.deployment.onnx_fold.runtime import session_options
from repblocks.errors import ConfigurationError

_FLOATS = {
    torch.float16: TensorProto.FLOAT16,
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
}
#: Attributes that name a type.
_TYPES = ("to", "dtype")


class Operator:
    """Runs one node; torch.fx writes it down as a call of a function.

    In another floating type than its own (float64, where a truth is computed) it runs in that, or
    if there is no kernel for that in its own.

    Args:
        node: The node.
        activations: The names that it is called with, in order.
        constants: What it reads besides, by name.
        model: Whose operator versions and functions count.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        activations: Sequence[str],
        constants: Mapping[str, np.ndarray],
        model: onnx.ModelProto,
    ) -> None:
        self.__name__ = node.op_type
        self._node = node
        self._activations = list(activations)
        self._constants = dict(constants)
        self._model = model
        self._own: torch.dtype | None = None
        self._sessions: dict[Any, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Operator:
        return self

    def __call__(self, *inputs: Any) -> Any:
        """Run the node, or let torch.fx write the call down."""
        if has_torch_function(inputs):
            return handle_torch_function(self, inputs, *inputs)
        dtype = next((x.dtype for x in inputs if x.is_floating_point()), None)
        if self._own is None:  # the first call is that of the example
            self._own = dtype
        if dtype == self._own:
            return self._run(inputs, None)
        try:
            return self._run(inputs, dtype)
        except Exception:  # noqa: BLE001 # ONNX Runtime has classes of its own
            narrow = [x.to(self._own) if x.is_floating_point() else x for x in inputs]
            return _cast(self._run(narrow, None), self._own, dtype)

    def evaluate(self) -> list[np.ndarray]:
        """Return the outputs of a node that reads constants only.

        Raises:
            ConfigurationError: if ONNX Runtime does not run it.
        """
        try:
            return list(self._session({}, None).run(None, {}))
        except Exception as error:  # likewise
            raise ConfigurationError(
                f"{self._node.op_type} {self._node.name!r} reads constants only, and cannot be "
                f"computed: {error}"
            ) from error

    def _run(self, inputs: Sequence[Tensor], dtype: torch.dtype | None) -> Any:
        feeds = {
            name: x.detach().cpu().numpy()
            for name, x in zip(self._activations, inputs, strict=True)
        }
        given = self._session(feeds, dtype).run(None, feeds)
        if not all(isinstance(one, np.ndarray) for one in given):
            raise ConfigurationError(
                f"{self._node.op_type} {self._node.name!r} gives a sequence, which is not "
                "supported. Simplify the file, or let the exporter of torch optimize it."
            )
        tensors = tuple(torch.from_numpy(np.array(one)) for one in given)
        return tensors if len(tensors) > 1 else tensors[0]

    def _session(self, feeds: Mapping[str, np.ndarray], dtype: torch.dtype | None) -> Any:
        import onnxruntime

        key = tuple(one.dtype for one in feeds.values())
        if key not in self._sessions:
            options = session_options()
            options.intra_op_num_threads = 1  # each session has threads of its own
            self._sessions[key] = onnxruntime.InferenceSession(
                self._alone(feeds, dtype).SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
            )
        return self._sessions[key]

    def _alone(self, feeds: Mapping[str, np.ndarray], dtype: torch.dtype | None) -> Any:
        """Return a model of this node alone, in another floating type if one is given."""
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), None)
            for name, x in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in self._node.output if name]
        constants = [numpy_helper.from_array(x, name) for name, x in self._constants.items()]
        graph = helper.make_graph([self._node], "node", inputs, outputs, constants)
        if dtype is not None and self._own is not None:
            _retype(graph, _FLOATS[self._own], _FLOATS[dtype])
        return helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            functions=self._model.functions,
            ir_version=max(self._model.ir_version, 4),
        )


def _cast(given: Any, old: torch.dtype | None, new: torch.dtype | None) -> Any:
    if isinstance(given, tuple):
        return tuple(_cast(one, old, new) for one in given)
    return given.to(new) if given.dtype == old else given


def _retype(graph: onnx.GraphProto, old: int, new: int) -> None:
    """Change one floating type to another in constants and declarations, in inner graphs too."""
    for constant in graph.initializer:
        _retype_tensor(constant, old, new)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == old:
            value.type.tensor_type.elem_type = new
    graph.ClearField("value_info")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.i == old:
                attribute.i = new
            _retype_tensor(attribute.t, old, new)
        for inner in graphs_of(node):
            _retype(inner, old, new)


def _retype_tensor(tensor: TensorProto, old: int, new: int) -> None:
    if tensor.data_type == old:
        values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(new))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
