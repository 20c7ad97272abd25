"""Sessions run a graph as it was written, and int8 products are exact on every processor."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from adaptx import machine
from adaptx.runtime.layout import LONE, MODEL
from adaptx.runtime.sessions import EXACT, REWRITES, open_session

SCALE, ZERO = np.float32(0.01), np.uint8(120)


@pytest.fixture(scope="module")
def product():
    """A product of u8 with s8 weights that reach the ends, as a model, and weights and scales."""
    rng = np.random.default_rng(0)
    weight_IO = rng.choice(np.array([-127, 126, 127], np.int8), (64, 48))
    scale_O = rng.random(48, dtype=np.float32)
    constants = {"a": SCALE, "z": ZERO, "w": weight_IO, "c": scale_O}
    inputs = ["q", "w", "a", "c", "z"]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "a", "z"], ["q"]),
            helper.make_node("MatMulIntegerToFloat", inputs, ["y"], domain="com.microsoft"),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", 48])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return model.SerializeToString(), weight_IO, scale_O


def largest(rows):
    """Inputs that are the largest a byte holds, so that every sum is as far as can be."""
    return np.full((rows, 64), (255 - float(ZERO)) * SCALE, np.float32)


def wanted(x_TI, weight_IO, scale_O):
    q_TI = np.clip(np.rint(x_TI / SCALE) + int(ZERO), 0, 255).astype(np.int64) - int(ZERO)
    return (q_TI @ weight_IO.astype(np.int64)) * SCALE * scale_O


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_the_largest_products_are_exact(product, rows):
    model, *weights = product
    x_TI = largest(rows)
    (found,) = open_session(model, 1).run(None, {"x": x_TI})
    assert found == pytest.approx(wanted(x_TI, *weights), rel=1e-6)


def test_where_nothing_is_said_to_overflow_onnxruntime_by_itself_is_exact(product):
    model, *weights = product
    x_TI = largest(40)
    (found,) = onnxruntime.InferenceSession(model).run(None, {"x": x_TI})
    if not machine.overflows():
        assert found == pytest.approx(wanted(x_TI, *weights), rel=1e-6)
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry(EXACT, "1")  # what others are told to set
    (found,) = onnxruntime.InferenceSession(model, settings).run(None, {"x": x_TI})
    assert found == pytest.approx(wanted(x_TI, *weights), rel=1e-6)


@pytest.mark.parametrize("name", [MODEL, LONE])
def test_keeping_products_exact_rewrites_nothing_else(int8, tmp_path, name):
    """onnxruntime's optimizers of that level stay out, those of this release too."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.add_session_config_entry(EXACT, "1")
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(int8 / name, settings, disabled_optimizers=REWRITES)
    written, run = (
        Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
        for path in (int8 / name, tmp_path / "optimized.onnx")
    )
    assert run == written


def test_the_processor_is_told():
    assert machine.cores() >= 1
    found = machine.flags()
    assert found is None or found  # None where the system has no /proc/cpuinfo
    if found:
        assert machine.overflows() <= found.isdisjoint(machine.INT8)
        assert machine.has_bf16() is not found.isdisjoint(machine.BF16)
