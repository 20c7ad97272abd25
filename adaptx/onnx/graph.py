"""Writing ONNX graphs node by node: names are made here, values are NumPy arrays.

Operators of the standard set and of com.microsoft, which plain onnxruntime has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 9
MICROSOFT = "com.microsoft"
DATA = ".data"  # the weights lie beside the graph, in a file that onnxruntime maps into memory
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
_OWN = {"FusedMatMul", "Gelu", "QuickGelu", "FastGelu", "MatMulIntegerToFloat"}  # com.microsoft's


class Graph:
    """A graph under construction. Every method that adds something returns the value's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: str, shape: Sequence[str | int]) -> str:
        """A graph input; names in `shape` are dimensions that may vary."""
        self.inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], list(shape)))
        return name

    def output(self, name: str, value: str, dtype: str, shape: Sequence[str | int]) -> None:
        """Let `value` leave the graph as `name`."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self.outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], list(shape)))

    def constant(self, value: Any, name: str | None = None) -> str:
        """A constant; the same name twice is a mistake."""
        array = np.asarray(value)
        name = name or f"constant_{len(self.constants)}"
        assert name not in self.constants, name
        self.constants[name] = np.ascontiguousarray(array).reshape(array.shape)
        return name

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node with one output, which `output` may name."""
        return self.split(op, *inputs, count=1, output=output, **attributes)[0]

    def split(
        self, op: str, *inputs: str, count: int, output: str | None = None, **attributes: Any
    ) -> list[str]:
        """A node with `count` outputs."""
        name = output or f"{op}_{len(self.nodes)}"
        outputs = [f"{name}_{i}" if i else name for i in range(count)]
        domain = MICROSOFT if op in _OWN else ""
        made = helper.make_node(op, list(inputs), outputs, name=name, domain=domain, **attributes)
        self.nodes.append(made)
        return outputs

    def model(self) -> onnx.ModelProto:
        """The model, its weights inside."""
        graph = helper.make_graph(
            self.nodes,
            "adaptx",
            self.inputs,
            self.outputs,
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="adaptx"
        )


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as `path`, its larger weights beside it as `<path>.data`."""
    written = onnx.ModelProto()
    written.CopyFrom(model)  # onnx takes the weights out of what it writes
    onnx.save_model(
        written,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=path.name + DATA,
        size_threshold=1024,
    )
    beside = path.with_name(path.name + DATA)
    if beside.exists():  # onnx lets nobody else read it
        beside.chmod(path.stat().st_mode)
