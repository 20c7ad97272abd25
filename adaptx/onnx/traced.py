"""Encoders that adaptx.onnx.bert can't build, as the same graph: torch follows one forward pass.

The exporter is the TorchScript one: dynamo's takes thirty times as long, for a graph that runs no
faster.

What depends on no input is computed here, once: transposed weights, DeBERTa's normalized table of
positions and its projections. So a product with a constant is a MatMul with an initializer `[I, O]`
and, where the site has a bias, an Add of a vector, which adaptx.onnx.quantize looks for; and its
other side always comes from the rows, which calibration can watch.

Dimensions: B rows, S tokens, H width, N slots, R rank, I and O a site's widths.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from adaptx.onnx.graph import OPSET, Graph
from adaptx.runtime.layout import IDS, INPUT_IDS, MASK, BankSpec, Part

if TYPE_CHECKING:
    from adaptx.encoder.encoder import Encoder
    from adaptx.encoder.sites import Site

ROWS, TOKENS, SLOTS, RANK = 2, 8, 3, 4  # of the pass that torch follows; the graph's vary


def traced_model(encoder: Encoder, sites: Sequence[str]) -> tuple[onnx.ModelProto, list[BankSpec]]:
    """The fp32 model of an encoder, and the banks that it takes for `sites` (adaptx.onnx.build)."""
    specs = _specs(encoder, sites)
    graph = Graph()
    for name in (INPUT_IDS, MASK):
        graph.input(name, "int64", ["batch", "tokens"])
    if specs:
        graph.input(IDS, "int64", ["rows", "positions"])
    for spec in specs:
        graph.input(spec.name, "float32", spec.dimensions)
    traced = _trace(encoder, specs)
    _take(traced, graph)
    hidden, mean = (output.name for output in traced.output)
    graph.output("hidden", hidden, "float32", ["batch", "tokens", encoder.hidden_size])
    graph.output("mean", mean, "float32", ["batch", encoder.hidden_size])
    return graph.model(), specs


def _specs(encoder: Encoder, sites: Sequence[str]) -> list[BankSpec]:
    specs = []
    for name in sites:
        site = encoder.sites[name]
        for kind, width in (("a", site.in_features), ("b", site.out_features)):
            specs.append(BankSpec(f"{name}.{kind}", (Part(name, kind),), width))
    return specs


class _BankRoute:
    """A route whose banks and slots are the graph's own inputs.

    banks   a `[N, R, I]` and b `[N, R, O]` of each site that has them
    slots   int64 `[B or 1]`
    """

    def __init__(self, banks: Mapping[str, tuple[Tensor, Tensor]], slots: Tensor):
        self.banks, self.slots = banks, slots

    def at(self, site: Site, x: Tensor) -> Tensor:
        """W x + b + B A x, of each row's slot: x `[B, S, I]` -> `[B, S, O]`."""
        y = site.base(x)
        if site.name not in self.banks:
            return y
        a_NRI, b_NRO = self.banks[site.name]
        return y + x @ a_NRI[self.slots].transpose(1, 2) @ b_NRO[self.slots]


class _Encoding(nn.Module):
    """The encoder as a function of what the graph takes."""

    def __init__(self, encoder: Encoder, specs: Sequence[BankSpec]):
        super().__init__()
        self.model = encoder.model  # so that the exporter knows the weights by name
        self.encoder, self.specs = encoder, specs

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *routed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Int64 `[B, S]` each, then slots and banks if there are any -> `[B, S, H]`, `[B, H]`."""
        route = None
        if routed:
            adapter_ids, *values = routed
            parts = {spec.name: value for spec, value in zip(self.specs, values, strict=True)}
            sites = [spec.parts[0].site for spec in self.specs]
            banks = {name: (parts[f"{name}.a"], parts[f"{name}.b"]) for name in sites}
            route = _BankRoute(banks, adapter_ids.reshape(-1))
        hidden = self.encoder.hidden(input_ids, attention_mask, route)
        weights = attention_mask.to(hidden.dtype).unsqueeze(1)
        # Twice the same: a product with one row alone sums in an order that padding changes.
        total = torch.cat([weights, weights], 1) @ hidden
        return hidden, total[:, 0] / weights.sum(2)


def _trace(encoder: Encoder, specs: Sequence[BankSpec]) -> onnx.GraphProto:
    """The nodes of a forward pass, as torch writes them."""
    input_ids = torch.zeros((ROWS, TOKENS), dtype=torch.int64)
    mask = torch.ones_like(input_ids)
    mask[0, TOKENS // 2 :] = 0  # a mask of ones alone might be left out
    values = [input_ids, mask]
    axes = {name: {0: "batch", 1: "tokens"} for name in (INPUT_IDS, MASK)}
    if specs:
        values.append(torch.arange(ROWS).unsqueeze(1))
        axes[IDS] = {0: "rows", 1: "positions"}
    for spec in specs:
        values.append(torch.zeros(SLOTS, RANK, spec.width))
        axes[spec.name] = {0: "slots", 1: "rank"}
    with (
        tempfile.TemporaryDirectory() as folder,  # a file: protobuf ends at 2 GB
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")  # of Python values, which don't vary here, and of its age
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            _Encoding(encoder, specs).eval(),
            tuple(value.to(encoder.device) for value in values),
            str(path),
            input_names=list(axes),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        return onnx.load(path).graph


def _take(traced: onnx.GraphProto, graph: Graph) -> None:
    """The traced nodes into `graph`, but for those that read constants alone: they become such."""
    known: dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in traced.initializer}
    for node in traced.node:
        if all(name in known for name in node.input):
            values = ReferenceEvaluator(node).run(None, {name: known[name] for name in node.input})
            known |= dict(zip(node.output, values, strict=True))
        else:
            graph.nodes.append(node)
    for name in dict.fromkeys(name for node in graph.nodes for name in node.input):
        if name in known:
            graph.constant(known[name], name)
