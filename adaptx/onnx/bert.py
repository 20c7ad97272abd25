"""BERT-shaped encoders (BERT, RoBERTa, XLM-R and what has their shape) as a graph with banks.

Built from the weights, node by node, so that every operator is the one that measures best
(docs/performance.md has what was tried), and that each sums in an order which neither padding nor
other rows change: a row's answer is the same, bit for bit, whatever it is batched with.

Dimensions: B rows, S tokens, H width, D width of a head, N slots, R rank, I and O a site's widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from adaptx.onnx.graph import Graph
from adaptx.runtime.layout import IDS, INPUT_IDS, MASK, BankSpec, Part

if TYPE_CHECKING:
    from adaptx.encoder.encoder import Encoder

MASKED = np.float32(-1e30)  # exp gives exactly 0, whatever the other scores


def bert_model(encoder: Encoder, sites: Sequence[str]) -> tuple[onnx.ModelProto, list[BankSpec]]:
    """The fp32 model of an encoder, and the banks that it takes for `sites` (adaptx.onnx.build)."""
    return BertGraph(encoder, sites).build()


class BertGraph:
    """The graph while it is built. What a linear reads has the same name in adaptx.onnx.lone."""

    def __init__(self, encoder: Encoder, sites: Sequence[str]):
        self.encoder, self.config, self.sites = encoder, encoder.config, set(sites)
        self.weights: Mapping[str, Any] = encoder.model.state_dict()
        self.graph = Graph()
        self.banks: list[BankSpec] = []
        self.heads = self.config.num_attention_heads
        self.width = self.config.hidden_size
        self.head_width = self.width // self.heads

    def build(self) -> tuple[onnx.ModelProto, list[BankSpec]]:
        """The model, and its banks."""
        g = self.graph
        ids_BS = g.input(INPUT_IDS, "int64", ["batch", "tokens"])
        mask_BS = g.input(MASK, "int64", ["batch", "tokens"])
        if self.sites:
            routed = g.input(IDS, "int64", ["rows", "positions"])
            self.slots = g.node("Reshape", routed, g.constant(np.array([-1], np.int64)))
        tokens_BS = g.node("Cast", mask_BS, to=1)
        hidden = self.embeddings(ids_BS)
        self.shared(ids_BS, tokens_BS)
        for i in range(self.config.num_hidden_layers):
            hidden = self.layer(hidden, f"encoder.layer.{i}.")
        g.output("hidden", hidden, "float32", ["batch", "tokens", self.width])
        g.output("mean", self.mean(hidden, tokens_BS), "float32", ["batch", self.width])
        return g.model(), self.banks

    def array(self, name: str) -> np.ndarray:
        """A weight of the encoder."""
        return self.weights[name].float().cpu().numpy()

    def embeddings(self, ids_BS: str) -> str:
        """Words + positions + the one token type there is, normalized."""
        g, at = self.graph, "embeddings."
        words = g.constant(self.array(f"{at}word_embeddings.weight"), f"{at}word_embeddings")
        hidden = g.node("Gather", words, ids_BS)
        table = self.array(f"{at}position_embeddings.weight")
        if f"{at}token_type_embeddings.weight" in self.weights:
            table = table + self.array(f"{at}token_type_embeddings.weight")[0]
        positions = g.constant(table, f"{at}position_embeddings")
        hidden = g.node("Add", hidden, g.node("Gather", positions, self.positions(ids_BS)))
        return self.norm(self.states(hidden), f"{at}LayerNorm")

    def states(self, embedded: str) -> str:
        """Embeddings `[B, S, H]` in the shape that the layers have."""
        return embedded

    def positions(self, ids_BS: str) -> str:
        """The position of each token: `[S]`, or `[B, S]` where they count what is no padding."""
        g = self.graph
        if self.config.model_type == "bert":
            length = g.node("Squeeze", g.node("Shape", ids_BS, start=1, end=2))
            return g.node("Range", g.constant(np.int64(0)), length, g.constant(np.int64(1)))
        padding = g.constant(np.int64(self.config.pad_token_id))
        real = g.node("Cast", g.node("Not", g.node("Equal", ids_BS, padding)), to=7)
        counted = g.node("CumSum", real, g.constant(np.int64(1)))
        return g.node("Add", g.node("Mul", counted, real), padding)

    def shared(self, ids_BS: str, tokens_BS: str) -> None:
        """What every layer's attention takes: what padding adds to scores, and a shape."""
        g = self.graph
        one = g.constant(np.float32(1))
        away = g.node("Mul", g.node("Sub", one, tokens_BS), g.constant(MASKED))
        away = g.node("Unsqueeze", away, g.constant(np.array([1, 2], np.int64)))  # [B, 1, 1, S]
        each = g.constant(np.array([1, self.heads, 1, 1], np.int64))
        away = g.node("Expand", away, each)
        last = g.node("Shape", ids_BS, start=1, end=2)
        by_head = g.node("Concat", g.constant(np.array([-1, 1], np.int64)), last, axis=0)
        self.away = g.node("Reshape", away, by_head)  # [B heads, 1, S]
        split = [g.constant(np.array(n, np.int64)) for n in ([-1, self.heads], [self.head_width])]
        self.split_heads = g.node("Concat", split[0], last, split[1], axis=0)
        self.by_token = g.constant(np.array([0, -1, self.head_width], np.int64))
        self.joined = g.constant(np.array([0, 0, self.width], np.int64))

    def layer(self, x: str, at: str) -> str:
        """Attention and FFN, each normalized after its residual: `[B, S, H]` -> `[B, S, H]`."""
        g = self.graph
        names = self.names(at)
        self.pick(names)
        q, k, v = self.linears(x, names[:3])
        context = self.attention(q, k, v, f"{at}attention.context")
        (attended,) = self.linears(context, names[3:4])
        x = self.norm(g.node("Add", attended, x), f"{at}attention.output.LayerNorm")
        (wide,) = self.linears(x, names[4:5])
        activation = "Gelu" if self.config.hidden_act == "gelu" else "Relu"
        wide = g.node(activation, wide, output=f"{at}intermediate.activated")
        (narrow,) = self.linears(wide, names[5:])
        return self.norm(g.node("Add", narrow, x), f"{at}output.LayerNorm")

    def names(self, at: str) -> list[str]:
        """A layer's sites: query, key, value, what joins the heads, and the FFN's two."""
        heads = [f"{at}attention.self.{name}" for name in ("query", "key", "value")]
        others = ("attention.output", "intermediate", "output")
        return [*heads, *(f"{at}{name}.dense" for name in others)]

    def pick(self, names: Sequence[str]) -> None:
        """Each row's own weights at a layer's sites, by the part that a bank begins with."""
        g = self.graph
        self.picked: dict[Part, str] = {}
        for spec in self.layer_banks(names):
            self.banks.append(spec)
            g.input(spec.name, "float32", spec.dimensions)
            self.picked[spec.parts[0]] = g.node("Gather", spec.name, self.slots, axis=0)

    def layer_banks(self, names: Sequence[str]) -> list[BankSpec]:
        """A layer's banks: one for each part, but for the A of query, key and value, which read
        the same input: theirs is one, and so is their product.
        """
        heads = tuple(Part(site, "a") for site in names[:3] if site in self.sites)
        groups = [heads] if heads else []
        groups += [(Part(site, "a"),) for site in names[3:] if site in self.sites]
        groups += [(Part(site, "b"),) for site in names if site in self.sites]
        found = []
        for parts in groups:
            site = self.encoder.sites[parts[0].site]
            width = site.in_features if parts[0].kind == "a" else site.out_features
            found.append(BankSpec(".".join(parts[0]), parts, width))
        return found

    def attention(self, q: str, k: str, v: str, output: str) -> str:
        """softmax(q k^T / sqrt(D) + mask) v: `[B, S, H]` each -> `output` `[B, S, H]`.

        Tokens first, so that the products step over the heads by themselves; with one row that
        transposes nothing.
        """
        g = self.graph

        def by_token(value: str) -> str:  # [B, S, H] -> [S, B heads, D]
            return g.node("Reshape", g.node("Transpose", value, perm=[1, 0, 2]), self.by_token)

        q, k, v = by_token(q), by_token(k), by_token(v)
        alpha = 1 / math.sqrt(self.head_width)
        scores = g.node("FusedMatMul", q, k, transBatchA=1, transBatchB=1, transB=1, alpha=alpha)
        weights = g.node("Softmax", g.node("Add", scores, self.away), axis=-1)
        context = g.node("FusedMatMul", weights, v, transBatchB=1)  # [B heads, S, D]
        context = g.node("Reshape", context, self.split_heads)
        context = g.node("Transpose", context, perm=[0, 2, 1, 3])
        return g.node("Reshape", context, self.joined, output=output)

    def linears(self, x: str, sites: Sequence[str]) -> list[str]:
        """W x + b of sites that read the same x `[B, S, I]`, and each row's update of them.

        The updates' first products are one.
        """
        g = self.graph
        lows = self.lows(x, [site for site in sites if site in self.sites])
        found = []
        for site in sites:
            weight = g.constant(self.array(f"{site}.base.weight").T, f"{site}.weight")
            y = g.node("MatMul", x, weight)
            if f"{site}.base.bias" in self.weights:
                y = g.node("Add", y, g.constant(self.array(f"{site}.base.bias"), f"{site}.bias"))
            if site in lows:
                y = self.updated(y, lows[site], self.picked[Part(site, "b")])
            found.append(y)
        return found

    def lows(self, x: str, sites: Sequence[str]) -> dict[str, str]:
        """A x of each row's adapter `[B, S, R]`, by site."""
        if not sites:
            return {}
        low, count = self.low(x, self.picked[Part(sites[0], "a")]), len(sites)
        split = [low]
        if count > 1:
            split = self.graph.split("Split", low, count=count, axis=-1, num_outputs=count)
        return dict(zip(sites, split, strict=True))

    def low(self, x: str, a: str) -> str:
        """X `[B, S, I]`, A `[B or 1, R, I]` -> A x `[B, S, R]`."""
        return self.graph.node("FusedMatMul", x, a, transB=1)

    def updated(self, y: str, low: str, b: str) -> str:
        """Y `[B, S, O]` + low `[B, S, R]` times B^T `[B or 1, R, O]`."""
        return self.graph.node("Add", y, self.graph.node("MatMul", low, b))

    def norm(self, x: str, at: str) -> str:
        """LayerNorm over the last axis."""
        g = self.graph
        scale, bias = (g.constant(self.array(f"{at}.{p}"), f"{at}.{p}") for p in ("weight", "bias"))
        epsilon = float(self.config.layer_norm_eps)
        output = f"{at}.normalized"
        return g.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon, output=output)

    def mean(self, hidden: str, tokens_BS: str) -> str:
        """The mean of the token states that aren't padding: `[B, S, H]` -> `[B, H]`."""
        g = self.graph
        middle = g.constant(np.array([1], np.int64))
        weights = g.node("Unsqueeze", tokens_BS, middle)
        # Twice the same: a product with one row alone sums in an order that padding changes.
        total = g.node("MatMul", g.node("Concat", weights, weights, axis=1), hidden)
        total = g.node("Gather", total, g.constant(np.int64(0)), axis=1)
        return g.node("Div", total, g.node("ReduceSum", tokens_BS, middle, keepdims=1))
