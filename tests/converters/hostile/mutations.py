"""Changes of model files: of their bytes, and of what they mean."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from tests.converters.hostile.seeds import Seed

_ODD = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 64, 255, 1000, 2**20, 2**31, 2**40, 2**63 - 1)
_OPERATORS = (
    "Relu", "Neg", "Exp", "Sigmoid", "Softmax", "Identity", "Add", "Mul", "Sub", "MatMul",
    "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile",
    "Shape", "Gather", "ConstantOfShape", "Conv", "ConvTranspose", "MaxPool", "AveragePool",
    "GlobalAveragePool", "LRN", "BatchNormalization", "InstanceNormalization", "Resize", "Pad",
    "Slice", "Split", "ReduceMean", "ReduceSum", "ArgMax", "TopK", "OneHot", "CumSum", "Where",
    "Cast", "Dropout", "Clip", "Pow", "QuantizeLinear", "DequantizeLinear",
    "DynamicQuantizeLinear", "If", "Loop", "Scan", "Einsum", "NonZero", "Range", "DepthToSpace",
    "GridSample", "ScatterND", "LSTM", "NonMaxSuppression",
)  # fmt: skip


def mutate(data: bytes, pool: Sequence[Seed], rng: random.Random) -> bytes:
    """A changed copy: a third by bytes, the others by structure."""
    if rng.random() < 0.34:
        return mutate_bytes(data, rng.choice(pool).data, rng)
    changed = mutate_structure(data, rng)
    return mutate_bytes(changed, data, rng) if rng.random() < 0.05 else changed


def mutate_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Flip, set, delete, repeat, splice or cut bytes, once or a few times."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            break
        at, length = rng.randrange(len(changed)), rng.choice((1, 2, 4, 16, 100))
        how = rng.randrange(6)
        if how == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            changed[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif how == 2:
            del changed[at : at + length]
        elif how == 3:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 50))
        elif how == 4:
            start = rng.randrange(len(other))
            changed[at : at + length] = other[start : start + length]
        elif rng.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def mutate_structure(data: bytes, rng: random.Random) -> bytes:
    """Change what the model says, once or a few times."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        if model.graph.node:
            rng.choice(_CHANGES)(model, rng)
    return model.SerializeToString()


def _node(model: onnx.ModelProto, rng: random.Random) -> NodeProto:
    """Any node, also of subgraphs and functions."""
    nodes = list(model.graph.node)
    for node in model.graph.node:
        nodes += [n for a in node.attribute if a.HasField("g") for n in a.g.node]
    nodes += [n for function in model.functions for n in function.node]
    return rng.choice(nodes)


def _names(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    names = [n for node in graph.node for n in (*node.input, *node.output)]
    return [*names, *(t.name for t in graph.initializer), "", "nowhere"]


def _dims(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        if tensor.dims and rng.random() < 0.7:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_ODD)
        else:
            tensor.dims.append(rng.choice((1, 1, *_ODD)))


def _input_dims(model: onnx.ModelProto, rng: random.Random) -> None:
    dims = model.graph.input[0].type.tensor_type.shape.dim if model.graph.input else ()
    if dims:
        rng.choice(dims).dim_value = rng.choice((*_ODD, 8, 16, 32))


def _types(model: onnx.ModelProto, rng: random.Random) -> None:
    kind = rng.choice((*range(24), 99, -1))
    if model.graph.initializer and rng.random() < 0.7:
        rng.choice(model.graph.initializer).data_type = kind
    elif model.graph.input:
        model.graph.input[0].type.tensor_type.elem_type = kind


def _numbers(model: onnx.ModelProto, rng: random.Random) -> None:
    """Scale, permute or replace a weight's numbers."""
    tensor = rng.choice(model.graph.initializer) if model.graph.initializer else TensorProto()
    try:
        held = tensor.HasField("raw_data") and tensor.data_location != TensorProto.EXTERNAL
        array = numpy_helper.to_array(tensor) if held else np.zeros(0)
    except (TypeError, ValueError, KeyError):
        return
    if not array.size or array.dtype.kind not in "fiu":
        return
    flat = array.reshape(-1).copy()
    how = rng.randrange(4)
    with np.errstate(all="ignore"):
        if how == 0:
            scaled = flat.astype(np.float64) * rng.choice((-1, 0, 1e-6, 1e6, 1e30))
            flat = scaled.astype(array.dtype)
        elif how == 1:
            flat = flat[np.random.default_rng(rng.randrange(2**32)).permutation(flat.size)]
        elif array.dtype.kind == "f":
            flat[rng.randrange(flat.size)] = rng.choice((np.nan, np.inf, -np.inf, 1e38, 0))
        else:
            info = np.iinfo(array.dtype)
            flat[rng.randrange(flat.size)] = min(max(rng.choice(_ODD), info.min), info.max)
    tensor.raw_data = flat.tobytes()


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if not node.attribute:
        node.attribute.append(helper.make_attribute("axis", rng.choice(_ODD)))
        return
    attribute = rng.choice(node.attribute)
    if attribute.ints and rng.random() < 0.8:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_ODD)
    elif attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(_ODD)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.choice((b"", b"\xff", b"cubic", b"SAME_UPPER", b"nearest", b"Clip"))
    else:
        attribute.type = rng.randrange(15)


def _drop_or_add_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.attribute and rng.random() < 0.5:
        del node.attribute[rng.randrange(len(node.attribute))]
        return
    name = rng.choice(("axis", "strides", "pads", "group", "keepdims", "auto_pad", "training_mode"))
    value = rng.choice((1, -1, [2, 2], [1, 1, 1, 1], "SAME_UPPER", 0.5))
    node.attribute.append(helper.make_attribute(name, value))


def _rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    node, names = _node(model, rng), _names(model)
    side = node.input if rng.random() < 0.8 else node.output
    how = rng.randrange(4)
    if side and how < 2:
        side[rng.randrange(len(side))] = rng.choice(names)
    elif side and how == 2:
        del side[rng.randrange(len(side))]
    else:
        side.append(rng.choice(names))


def _drop_or_repeat_node(model: onnx.ModelProto, rng: random.Random) -> None:
    at = rng.randrange(len(model.graph.node))
    if rng.random() < 0.5:
        del model.graph.node[at]
        return
    copy = model.graph.node.add()
    copy.CopyFrom(model.graph.node[at])
    if rng.random() < 0.7:
        for i in range(len(copy.output)):
            copy.output[i] += "_copy"


def _bypass(model: onnx.ModelProto, rng: random.Random) -> None:
    """Leave a node out and join its ends."""
    at = rng.randrange(len(model.graph.node))
    gone = model.graph.node[at]
    if gone.input and gone.output:
        source, name = gone.input[0], gone.output[0]
        for node in model.graph.node:
            for i, read in enumerate(node.input):
                if read == name:
                    node.input[i] = source
        del model.graph.node[at]


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice(_OPERATORS)
    if rng.random() < 0.3:
        del node.attribute[:]


def _insert(model: onnx.ModelProto, rng: random.Random) -> None:
    """Put an operator of one input between two nodes."""
    node = rng.choice(model.graph.node)
    if node.input:
        new = model.graph.node.add(op_type=rng.choice(_OPERATORS))
        new.input.append(node.input[0])
        new.output.append("inserted")
        node.input[0] = "inserted"


def _versions(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.opset_import and rng.random() < 0.8:
        rng.choice(model.opset_import).version = rng.choice((*range(1, 28), *_ODD))
    else:
        model.ir_version = rng.choice((*range(15), *_ODD[:6]))


def _rename(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.graph.initializer and rng.random() < 0.5:
        rng.choice(model.graph.initializer).name = rng.choice(_names(model))
    elif model.graph.output:
        rng.choice(model.graph.output).name = rng.choice(_names(model))


def _entry(model: onnx.ModelProto, rng: random.Random) -> None:
    """Change where external data lies, or let a weight say that it is external."""
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    if tensor.external_data and rng.random() < 0.7:
        entry = rng.choice(tensor.external_data)
        entry.value = rng.choice(("", "-1", "0", "1e3", "../x", "weights.bin", str(2**62)))
    elif rng.random() < 0.5:
        tensor.data_location = rng.randrange(2)
    else:
        tensor.external_data.add(key=rng.choice(("location", "offset", "key")), value="weights.bin")


_CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _dims, _input_dims, _types, _numbers, _numbers, _attribute, _attribute, _drop_or_add_attribute,
    _rewire, _rewire, _drop_or_repeat_node, _bypass, _operator, _operator, _insert, _versions,
    _rename, _entry,
)  # fmt: skip
