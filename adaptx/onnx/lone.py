"""The graph of a lone row: BERT-shaped encoders once more, for one row without padding.

A lone row is bound by memory and by the number of nodes. With one row nothing is masked or
transposed, an update is added by the product that makes it, and the adapter's matrices are inputs
of their own that lie in the bank: nobody picks or copies them. It gives the same bits as the
bundle's graph, from the same weights.

Dimensions: S tokens, H width, D width of a head, R rank, I and O a site's widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from adaptx.onnx.bert import BertGraph
from adaptx.runtime.layout import HIDDEN, INPUT_IDS, MEAN

if TYPE_CHECKING:
    from adaptx.encoder.encoder import Encoder


def lone_model(encoder: Encoder, sites: Sequence[str]) -> onnx.ModelProto:
    """The fp32 model of one row: input_ids int64 [1, S], and by the name of each bank a slot of it,
    fp32 [R of its parts, width] -> hidden fp32 [1, S, H], mean fp32 [1, H].
    """
    return _LoneGraph(encoder, sites).lone()


class _LoneGraph(BertGraph):
    """States are `[S, H]` all the way."""

    def lone(self) -> onnx.ModelProto:
        """Build it."""
        g = self.graph
        ids_1S = g.input(INPUT_IDS, "int64", [1, "tokens"])
        self.by_token = g.constant(np.array([-1, self.heads, self.head_width], np.int64))
        self.joined = g.constant(np.array([-1, self.width], np.int64))
        hidden = self.embeddings(ids_1S)
        for i in range(self.config.num_hidden_layers):
            hidden = self.layer(hidden, f"encoder.layer.{i}.")
        one_row = g.node("Unsqueeze", hidden, g.constant(np.array([0], np.int64)))
        g.output(HIDDEN, one_row, "float32", [1, "tokens", self.width])
        g.output(MEAN, self.lone_mean(hidden), "float32", [1, self.width])
        return g.model()

    def states(self, embedded: str) -> str:
        """`[1, S, H]` -> `[S, H]`."""
        return self.graph.node("Reshape", embedded, self.joined)

    def pick(self, names: Sequence[str]) -> None:
        """A slot of each of a layer's banks is an input."""
        self.picked = {}
        for spec in self.layer_banks(names):
            _, *dimensions = spec.dimensions
            self.picked[spec.parts[0]] = self.graph.input(spec.name, "float32", dimensions)

    def attention(self, q: str, k: str, v: str, output: str) -> str:
        """softmax(q k^T / sqrt(D)) v: `[S, H]` each -> `output` `[S, H]`."""
        g = self.graph
        q, k, v = (g.node("Reshape", value, self.by_token) for value in (q, k, v))
        alpha = 1 / math.sqrt(self.head_width)
        scores = g.node("FusedMatMul", q, k, transBatchA=1, transBatchB=1, transB=1, alpha=alpha)
        weights = g.node("Softmax", scores, axis=-1)
        context = g.node("FusedMatMul", weights, v, transBatchB=1)  # [heads, S, D]
        context = g.node("Transpose", context, perm=[1, 0, 2])
        return g.node("Reshape", context, self.joined, output=output)

    def low(self, x: str, a: str) -> str:
        """X `[S, I]`, A `[R, I]` -> A x `[S, R]`."""
        return self.graph.node("Gemm", x, a, transB=1)

    def updated(self, y: str, low: str, b: str) -> str:
        """Y `[S, O]` + low `[S, R]` times B^T `[R, O]`."""
        return self.graph.node("Gemm", low, b, y)

    def lone_mean(self, hidden: str) -> str:
        """The mean of all tokens, summed as BertGraph.mean does: `[S, H]` -> `[1, H]`."""
        g = self.graph
        length = g.node("Shape", hidden, start=0, end=1)
        shape = g.node("Concat", g.constant(np.array([2], np.int64)), length, axis=0)
        ones = g.node("Expand", g.constant(np.ones((1, 1), np.float32)), shape)
        total = g.node("MatMul", ones, hidden)
        first = g.node("Gather", total, g.constant(np.array([0], np.int64)), axis=0)
        return g.node("Div", first, g.node("Cast", length, to=1))


def save_beside(model: onnx.ModelProto, path: Path, whole: Path) -> None:
    """Write a model whose weights are those of `whole`, a model that was saved already."""
    saved = {t.name: t for t in onnx.load(whole, load_external_data=False).graph.initializer}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        held = None if tensor.name.startswith("constant_") else saved.get(tensor.name)
        if held is not None and held.data_location == onnx.TensorProto.EXTERNAL:
            assert (held.dims, held.data_type) == (tensor.dims, tensor.data_type), tensor.name
            tensor.CopyFrom(held)
    onnx.save(made, path)
