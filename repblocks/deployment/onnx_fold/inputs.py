"""What an ONNX graph takes, and examples of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
import torch
from torch import Tensor

from repblocks.errors import ConfigurationError

#: Sizes for each input, or for the only one.
Shapes = Sequence[int] | Mapping[str, Sequence[int]] | None

# Other sizes differ by a multiple of what any network halves its images to, each by another one.
_STEP = 32
#: Values of an example, which is made several times.
_MOST_VALUES = 2**28
_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


@dataclass(frozen=True)
class Spec:
    """One input of a graph.

    Args:
        name: Its name.
        sizes: Its shape; None for a size that is free.
        dtype: Its type.
        free: The axes whose sizes were free in the file.
    """

    name: str
    sizes: tuple[int | None, ...]
    dtype: torch.dtype
    free: tuple[int, ...]

    def example(self, batch: int, generator: torch.Generator, beyond: int | None = None) -> Tensor:
        """Make random values of this type.

        Args:
            batch: The first size, where that is free.
            generator: Of the values.
            beyond: How much larger the other sizes that are free are than a multiple of 32 more,
                which is another one for each axis; None for those given. Channels are left, if the
                axes after them are free, too.
        """
        shape = [size or 1 for size in self.sizes]
        grown = [] if beyond is None else [a for a in self.free if a != 1 or 2 not in self.free]
        for axis in grown:
            shape[axis] += _STEP * axis + (beyond or 0)
        if 0 in self.free:
            shape[0] = batch
        if self.dtype.is_floating_point:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
        # Numbers that are valid as images, and small ones that are valid as indices.
        high = 256 if self.dtype is torch.uint8 else 2
        return torch.randint(0, high, shape, generator=generator).to(self.dtype)


def specs_of(model: onnx.ModelProto, shapes: Shapes) -> tuple[Spec, ...]:
    """Return the inputs of a graph; those that are initializers as well are constants.

    Args:
        model: The model.
        shapes: What to take for sizes that are free.

    Raises:
        ConfigurationError: if a size other than the first is free and not given, what is given
            does not fit, or an input is no tensor of a known type.
    """
    constants = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    if not inputs:
        raise ConfigurationError("The ONNX graph has no input, so nothing depends on one.")
    given = _by_name(shapes, [one.name for one in inputs])
    return tuple(_spec(one, given.get(one.name)) for one in inputs)


def _by_name(shapes: Shapes, names: Sequence[str]) -> Mapping[str, Sequence[int]]:
    if shapes is None:
        return {}
    if not isinstance(shapes, Mapping):
        if len(names) > 1:
            raise ConfigurationError(
                f"onnx_shape must name the inputs, as there are several: {', '.join(names)}. For "
                f"example onnx_shape={{{names[0]}: [1,3,224,224]}}."
            )
        shapes = {names[0]: shapes}
    unknown = [name for name in shapes if name not in names]
    if unknown:
        raise ConfigurationError(
            f"onnx_shape names {unknown[0]!r}, which is no input. Inputs: {', '.join(names)}."
        )
    return shapes


def _spec(value: onnx.ValueInfoProto, given: Sequence[int] | None) -> Spec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type not in _DTYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        known = ", ".join(str(one).removeprefix("torch.") for one in _DTYPES.values())
        raise ConfigurationError(
            f"Input {value.name!r} of the ONNX graph must be a tensor of {known}, got "
            f"{kind if value.type.HasField('tensor_type') else 'something else'}."
        )
    dims: list[int | None] = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
    sizes: tuple[int | None, ...] = tuple(dims)
    if given is not None:
        sizes = _filled(value.name, dims, given, is_ranked=tensor.HasField("shape"))
    elif not tensor.HasField("shape") or any(size is None for size in dims[1:]):
        shown = ", ".join("?" if size is None else str(size) for size in dims)
        raise ConfigurationError(
            f"Input {value.name!r} of the ONNX graph has free sizes: [{shown}]. Give those to fold "
            "it at with onnx_shape, for example onnx_shape=[1,3,224,224]; the written file keeps "
            "them free."
        )
    if (values := prod(size or 1 for size in sizes)) > _MOST_VALUES:
        raise ConfigurationError(
            f"Input {value.name!r} of the ONNX graph is to be {list(sizes)}: {values:,} values, "
            f"where {_MOST_VALUES:,} are allowed. Give smaller sizes with onnx_shape if the file "
            "leaves them free."
        )
    free = tuple(axis for axis, size in enumerate(dims) if size is None)
    return Spec(value.name, sizes, _DTYPES[tensor.elem_type], free)


def _filled(
    name: str, dims: Sequence[int | None], given: Sequence[int], *, is_ranked: bool
) -> tuple[int, ...]:
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    if not is_list or not all(type(size) is int and size > 0 for size in given):
        raise ConfigurationError(f"onnx_shape must hold positive integers, got {given!r}.")
    fits = len(given) == len(dims) and all(
        known in (None, size) for known, size in zip(dims, given, strict=True)
    )
    if is_ranked and not fits:
        shown = ", ".join("?" if size is None else str(size) for size in dims)
        raise ConfigurationError(
            f"onnx_shape {list(given)} does not fit input {name!r} of the ONNX graph, which is "
            f"[{shown}]."
        )
    return tuple(given)


def examples(
    specs: Sequence[Spec], batch: int, seed: int = 0, beyond: int | None = None
) -> tuple[Tensor, ...]:
    """Make one example of each input, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(spec.example(batch, generator, beyond) for spec in specs)
