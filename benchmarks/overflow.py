"""Products of int8 on this processor: how wrong they are as onnxruntime has them, and kept exact.

Data      none: inputs and weights drawn as smoothing leaves them, which fill a byte's range.
Models    one product at the shapes of multilingual-e5-small's FFN: u8 inputs with fixed scales, s8
          weights with a scale for each output; and fp32. One thread, in turns, medians.
Figures   error: the largest difference from the exact sums, as a share of the largest; ms a call.
          Where the processor has VNNI both are exact, and the same.
Command   python -m benchmarks.overflow
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from adaptx import machine
from adaptx.runtime.sessions import EXACT

ROWS, SHAPES, CALLS = (16, 256, 1536), ((384, 1536), (1536, 384)), 40
SCALE, ZERO = np.float32(0.01), np.uint8(120)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.overflow",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    found: dict[str, Any] = {"overflows": machine.overflows()}
    table = Table("rows x in x out", "way", "error", "ms")
    for inputs, outputs in SHAPES:
        sessions, weight_IO, scale_O = sessions_of(inputs, outputs)
        for rows in ROWS:
            x_TI = np.random.default_rng(1).normal(0, 0.5, (rows, inputs)).astype(np.float32)
            q_TI = np.clip(np.rint(x_TI / SCALE) + int(ZERO), 0, 255) - int(ZERO)  # fp64: exact
            exact = q_TI.astype(np.float64) @ weight_IO.astype(np.float64) * SCALE * scale_O
            seconds: dict[str, list[float]] = {way: [] for way in sessions}
            for call in range(CALLS + 3):
                for way, session in sessions.items():
                    started = time.perf_counter()
                    (y,) = session.run(None, {"x": x_TI})
                    if call >= 3:
                        seconds[way].append(time.perf_counter() - started)
                    if call == 0 and way != "fp32":
                        error = float(np.abs(y - exact).max() / np.abs(exact).max())
                        found.setdefault(f"{rows}x{inputs}x{outputs}", {})[way] = {"error": error}
            for way, each in seconds.items():
                one = found[f"{rows}x{inputs}x{outputs}"].setdefault(way, {})
                one["ms"] = round(1000 * statistics.median(each), 4)
                error = f"{one['error']:.1e}" if "error" in one else ""
                table.add_row(f"{rows} x {inputs} x {outputs}", way, error, f"{one['ms']:.3f}")
    Console(file=sys.stderr).print(table)
    print(json.dumps(found))


def sessions_of(inputs: int, outputs: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The sessions by the way that they multiply; s8 weights `[I, O]` and their scales `[O]`."""
    weight = np.random.default_rng(0).normal(0, 0.05, (inputs, outputs)).astype(np.float32)
    scale_O = np.abs(weight).max(0) / np.float32(127)
    weight_IO = np.rint(weight / scale_O).astype(np.int8)
    names = ["q", "w", "a", "c", "z"]
    whole = [
        helper.make_node("QuantizeLinear", ["x", "a", "z"], ["q"]),
        helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft"),
    ]
    constants = {"a": SCALE, "z": ZERO, "w": weight_IO, "c": scale_O}
    int8 = model(whole, constants, inputs, outputs)
    fp32 = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, inputs, outputs)
    made = {}
    for way, (graph, exact) in {
        "as it is": (int8, "0"), "exact": (int8, "1"), "fp32": (fp32, "0"),
    }.items():  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry(EXACT, exact)
        made[way] = onnxruntime.InferenceSession(graph, options)
    return made, weight_IO, scale_O


def model(nodes: list[Any], constants: dict[str, Any], inputs: int, outputs: int) -> bytes:
    """The bytes of a model, x fp32 `[T, I]` -> y fp32 `[T, O]`."""
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", outputs])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return made


if __name__ == "__main__":
    main()
