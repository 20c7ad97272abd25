"""A bundle's folder, described once. N slots, R rank, I and O a site's widths.

    bundle.json                 `BundleFacts`, and the sha256 of every file
    model.onnx, model.onnx.data the graph and its weights
    tokenizer.json
    probe.safetensors           token ids, and torch's fp32 outputs for them
    adapters/<name>/…           adapters' folders

A bank is a graph input `[N, R of each site, width]`, the sites' parts behind each other:

    a   scale-free A `[R, I]`, as PEFT stores it
    b   B^T `[R, O]`, times the adapter's scale at that site
"""

from __future__ import annotations

from dataclasses import dataclass

INPUT_IDS, MASK, IDS = "input_ids", "attention_mask", "adapter_ids"


@dataclass(frozen=True)
class BankSpec:
    """A bank that the graph takes: what `part` ("a" or "b") of which sites, and how wide."""

    name: str
    part: str
    sites: tuple[str, ...]
    width: int

    @property
    def dimensions(self) -> list[str | int]:
        """The shape of the graph's input; names are dimensions that may vary."""
        return ["slots", f"rank_{len(self.sites)}", self.width]
