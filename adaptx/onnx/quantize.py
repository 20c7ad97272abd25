"""int8 with fixed scales, after smoothing: a row's answer doesn't depend on its neighbours.

    x' = x / s            a vector for each product's input: outlying channels move into the weights
    q  = round(x' / a) + z    u8; a and z are constants, so nothing is measured while it runs
    y  = a c (q - z) (W s)_int8 + b       s8 weights with a scale c for each output channel

s_i = max|x_i|^alpha / max|W_i|^(1 - alpha) (Xiao et al. 2023, "SmoothQuant", arXiv 2211.10438). The
alpha is the one of ALPHAS whose products err least on calibration rows; the range is theirs, whole:
clipping it made the products better and the encoder worse. Products that read the same input share
both.

Dimensions: T sampled tokens, I inputs, O outputs, V rows of a table, H its width.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from adaptx.onnx.graph import MICROSOFT, save
from adaptx.runtime.layout import SATURATION, BankSpec

ALPHAS = (0.65, 0.7, 0.75, 0.8)
SAMPLED = 768  # tokens kept for the search
LEAST = 32  # narrower products stay in fp32
TABLE = 1000  # rows, from which on a table is quantized


@dataclass
class Range:
    """What calibration saw of one tensor `[…, I]`: a sample of its rows, and every row's range."""

    low_I: np.ndarray
    high_I: np.ndarray
    sample: list[np.ndarray] = field(default_factory=list)

    @property
    def rows_TI(self) -> np.ndarray:
        """The sample."""
        return np.concatenate(self.sample)


@dataclass(frozen=True)
class Scheme:
    """How one input is quantized: x' = x * inverse_I, u8 with `scale` and `zero`."""

    inverse_I: np.ndarray
    scale: np.float32
    zero: np.uint8
    error: float  # of the products: mean square, as a share of their own


def inputs_of_products(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The products to quantize, `x W` with a constant W `[I, O]`, by the name of x."""
    weights = {w.name: w.dims for w in model.graph.initializer if w.data_type == 1}
    found = defaultdict(list)
    for node in model.graph.node:
        shape = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if shape is not None and len(shape) == 2 and min(shape) >= LEAST:
            found[node.input[0]].append(node)
    return dict(found)


def calibrate(
    model: onnx.ModelProto, feeds: Iterable[Mapping[str, Any]], expected: int
) -> dict[str, Range]:
    """Run the fp32 model on rows without padding; the range of every product's input.

    `expected` is about how many tokens there will be: of more than SAMPLED, some are left out of
    the search, and none of the ranges.
    """
    import onnxruntime

    names = list(inputs_of_products(model))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    made = {output for node in model.graph.node for output in node.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n in made)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        save(watched, Path(folder) / "model.onnx")  # beside its weights: protobuf ends at 2 GB
        session = onnxruntime.InferenceSession(
            Path(folder) / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
    ranges: dict[str, Range] = {}
    rng, share = np.random.default_rng(0), min(1.0, SAMPLED / max(expected, 1))
    for feed in feeds:
        for name, value in zip(names, session.run(names, feed), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            kept = rows[rng.random(len(rows)) < share]
            low, high = rows.min(0), rows.max(0)
            if name not in ranges:
                ranges[name] = Range(low, high, [kept])
            else:
                seen = ranges[name]
                seen.low_I, seen.high_I = np.minimum(seen.low_I, low), np.maximum(seen.high_I, high)
                seen.sample.append(kept)
    return ranges


def search(seen: Range, weights: Sequence[np.ndarray]) -> Scheme:
    """The scheme whose products x W, for all `weights` `[I, O]` at once, err least."""
    rows_TI = seen.rows_TI
    joined_IO = np.concatenate(list(weights), axis=1)
    wanted_TO = rows_TI @ joined_IO
    power = max(float(np.square(wanted_TO, dtype=np.float64).mean()), 1e-30)
    most_I = np.maximum(np.maximum(-seen.low_I, seen.high_I), 1e-6)
    weight_I = np.maximum(np.abs(joined_IO).max(1), 1e-6)

    def tried(alpha: float) -> Scheme:
        smooth_I = most_I**alpha / weight_I ** (1 - alpha)
        smooth_I = (smooth_I / np.exp(np.log(smooth_I).mean())).astype(np.float32)
        low = min(float((seen.low_I / smooth_I).min()), 0.0)
        high = max(float((seen.high_I / smooth_I).max()), 1e-6)
        scale = np.float32((high - low) / 255)
        zero = np.uint8(np.clip(round(-low / float(scale)), 0, 255))
        inverse_I = (1 / smooth_I).astype(np.float32)
        quantized_IO, scale_O = quantize_columns(joined_IO / inverse_I[:, None])
        seen_TI = _through_u8(rows_TI * inverse_I, scale, np.float32(zero))
        found_TO = seen_TI @ (quantized_IO.astype(np.float32) * scale_O)
        error = float(np.square(found_TO - wanted_TO, dtype=np.float64).mean()) / power
        return Scheme(inverse_I, scale, zero, error)

    return min(map(tried, ALPHAS), key=lambda scheme: scheme.error)


def _through_u8(smoothed_TI: np.ndarray, scale: np.float32, zero: np.float32) -> np.ndarray:
    """Smoothed inputs as the u8 product sees them, back in fp32."""
    return (np.clip(np.rint(smoothed_TI / scale) + zero, 0, 255) - zero) * scale


def quantize_columns(weight_IO: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s8 `[I, O]` and its scales `[O]`, from -127 to 127."""
    scale_O = np.maximum(np.abs(weight_IO).max(0) / 127, 1e-12).astype(np.float32)
    return np.rint(weight_IO / scale_O).astype(np.int8), scale_O


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, Range]
) -> tuple[onnx.ModelProto, dict[str, float]]:
    """The int8 model, and the error of each input's products (see `Scheme`)."""
    rewriting = _Rewriting(model)
    errors = {}
    for name, products in inputs_of_products(model).items():
        weights = [rewriting.array(node.input[1]) for node in products]
        scheme = search(ranges[name], weights)
        rewriting.products(name, products, weights, scheme)
        errors[name] = scheme.error
    rewriting.tables()
    return rewriting.model(), errors


class _Rewriting:
    """A copy of a model whose nodes are replaced; order is kept, what nobody reads is dropped."""

    def __init__(self, model: onnx.ModelProto):
        self.source = model
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.instead: dict[int, list[onnx.NodeProto]] = {}  # by the node's id

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])

    def constant(self, name: str, value: Any) -> str:
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def products(
        self,
        x: str,
        products: Sequence[onnx.NodeProto],
        weights: Sequence[np.ndarray],
        scheme: Scheme,
    ) -> None:
        """Quantize x once, before the first of its products."""
        inverse = self.constant(f"{x}/smooth", scheme.inverse_I)
        scale = self.constant(f"{x}/scale", scheme.scale)
        zero = self.constant(f"{x}/zero", scheme.zero)
        before = [
            helper.make_node("Mul", [x, inverse], [f"{x}/smoothed"], f"{x}/smoothed"),
            helper.make_node(
                "QuantizeLinear", [f"{x}/smoothed", scale, zero], [f"{x}/u8"], f"{x}/u8"
            ),
        ]
        for node, weight in zip(products, weights, strict=True):
            name = node.input[1]
            if f"{name}/s8" in self.constants:  # another input's, smoothed otherwise
                name = f"{name}/{x}"
            quantized, scales = quantize_columns(weight / scheme.inverse_I[:, None])
            inputs = [f"{x}/u8", self.constant(f"{name}/s8", quantized), scale]
            inputs += [self.constant(f"{name}/scales", scales), zero]
            output, bias = node.output[0], self._bias(node, weight.shape[1])
            if bias is not None:
                inputs += ["", bias[1]]
                output = bias[0].output[0]
                self.instead[id(bias[0])] = []
            self.instead[id(node)] = [
                *before,
                helper.make_node(
                    "MatMulIntegerToFloat", inputs, [output], f"{name}/product", domain=MICROSOFT
                ),
            ]
            before = []

    def _bias(self, node: onnx.NodeProto, outputs: int) -> tuple[onnx.NodeProto, str] | None:
        """The Add of a constant `[O]` that alone reads a product, and that constant."""
        readers = self.readers[node.output[0]]
        if len(readers) != 1 or readers[0].op_type != "Add":
            return None
        others = [name for name in readers[0].input if name != node.output[0]]
        constant = self.constants.get(others[0]) if len(others) == 1 else None
        fits = constant is not None and list(constant.dims) == [outputs]
        return (readers[0], others[0]) if fits else None

    def tables(self) -> None:
        """Tables of embeddings as s8 with a scale for each row."""
        for node in self.source.graph.node:
            tensor = self.constants.get(node.input[0]) if node.op_type == "Gather" else None
            if tensor is None or len(tensor.dims) != 2 or tensor.dims[0] < TABLE:
                continue
            table_VH = numpy_helper.to_array(tensor)
            quantized_HV, scale_V = quantize_columns(table_VH.T)
            name, ids = node.input[0], node.input[1]
            rows = self.constant(f"{name}/s8", quantized_HV.T)
            scales = self.constant(f"{name}/scales", scale_V[:, None])
            at = node.output[0]
            self.instead[id(node)] = [
                helper.make_node("Gather", [rows, ids], [f"{at}/s8"], f"{at}/s8"),
                helper.make_node("Cast", [f"{at}/s8"], [f"{at}/whole"], f"{at}/whole", to=1),
                helper.make_node("Gather", [scales, ids], [f"{at}/scale"], f"{at}/scale"),
                helper.make_node("Mul", [f"{at}/whole", f"{at}/scale"], [at], at),
            ]

    def model(self) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(self.source)
        nodes = [n for node in self.source.graph.node for n in self.instead.get(id(node), [node])]
        read = {name for node in nodes for name in node.input}
        del made.graph.node[:], made.graph.initializer[:]
        made.graph.node.extend(nodes)
        made.graph.initializer.extend(t for name, t in self.constants.items() if name in read)
        return made


def with_joined_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """An int8 model whose products of one input are one product, and a Split: the same bits.

    A lone row's threads then meet once where they met three times. With more rows the Split costs
    more than that.
    """
    rewriting = _Rewriting(model)
    together: dict[tuple[str, ...], list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        if node.op_type == "MatMulIntegerToFloat" and len(node.input) == 7:
            x, _, scale, _, zero, *_ = node.input
            together[x, scale, zero].append(node)
    for (x, scale, zero), nodes in together.items():
        if len(nodes) == 1:
            continue
        weights, scales, biases = (
            np.concatenate([rewriting.array(node.input[i]) for node in nodes], axis=-1)
            for i in (1, 3, 6)
        )
        inputs = [x, rewriting.constant(f"{x}/weights", weights), scale]
        inputs += [rewriting.constant(f"{x}/scales", scales), zero, ""]
        inputs += [rewriting.constant(f"{x}/biases", biases)]
        widths = np.array([rewriting.array(node.input[3]).size for node in nodes], np.int64)
        outputs = [node.output[0] for node in nodes]
        joined = f"{x}/product"
        rewriting.instead |= {id(node): [] for node in nodes[1:]}
        rewriting.instead[id(nodes[0])] = [
            helper.make_node("MatMulIntegerToFloat", inputs, [joined], joined, domain=MICROSOFT),
            helper.make_node(
                "Split", [joined, rewriting.constant(f"{x}/widths", widths)], outputs,
                f"{x}/split", axis=-1,
            ),
        ]  # fmt: skip
    return rewriting.model()


def with_saturation(model: onnx.ModelProto) -> onnx.ModelProto:
    """An int8 model that also gives `saturation` fp32 `[]`: the largest share of values beyond the
    range of u8 that any quantized input has.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in _small(graph)}
    shares = []
    for node in list(graph.node):
        if node.op_type != "QuantizeLinear":
            continue
        x, (scale, zero) = node.input[0], (float(values[name]) for name in node.input[1:])
        # Half a step beyond the ends still rounds to them.
        ends = np.array([-zero - 0.5, 255 - zero + 0.5], np.float32) * np.float32(scale)
        low, high = (f"{x}/{end}" for end in ("low", "high"))
        graph.initializer.extend(map(numpy_helper.from_array, ends, (low, high)))
        graph.node.extend(
            [
                helper.make_node("GreaterOrEqual", [x, low], [f"{low}?"]),
                helper.make_node("LessOrEqual", [x, high], [f"{high}?"]),
                helper.make_node("And", [f"{low}?", f"{high}?"], [f"{x}/within"]),
                helper.make_node("Not", [f"{x}/within"], [f"{x}/beyond"]),  # NaN is beyond, too
                helper.make_node("Cast", [f"{x}/beyond"], [f"{x}/beyond/1"], to=1),
                helper.make_node("ReduceMean", [f"{x}/beyond/1"], [f"{x}/share"], keepdims=0),
            ]
        )
        shares.append(f"{x}/share")
    graph.node.append(helper.make_node("Max", shares, [SATURATION]))
    graph.output.append(helper.make_tensor_value_info(SATURATION, 1, []))
    return made


def _small(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """The constants that stand in the graph itself, not beside it."""
    beside = onnx.TensorProto.EXTERNAL
    return [tensor for tensor in graph.initializer if tensor.data_location != beside]


def with_half_banks(model: onnx.ModelProto, banks: Sequence[BankSpec]) -> onnx.ModelProto:
    """The model with banks of fp16: each row's own is widened after it was picked."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    names = {bank.name for bank in banks}
    for value in made.graph.input:
        if value.name in names:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    nodes = []
    for node in model.graph.node:
        nodes.append(onnx.NodeProto())
        nodes[-1].CopyFrom(node)
        if node.op_type == "Gather" and node.input[0] in names:
            picked = node.output[0]
            nodes[-1].output[0] = f"{picked}/half"
            nodes.append(
                helper.make_node("Cast", [f"{picked}/half"], [picked], f"{picked}/whole", to=1)
            )
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def with_half_slots(model: onnx.ModelProto, banks: Sequence[BankSpec]) -> onnx.ModelProto:
    """A lone row's model (adaptx.onnx.lone) with slots of fp16, widened as they come in."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    names = [bank.name for bank in banks]
    for value in made.graph.input:
        if value.name in names:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    nodes = [
        helper.make_node("Cast", [name], [f"{name}/whole"], f"{name}/whole", to=1) for name in names
    ]
    nodes += made.graph.node
    for node in nodes[len(names) :]:
        for i, name in enumerate(node.input):
            if name in names:
                node.input[i] = f"{name}/whole"
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made
