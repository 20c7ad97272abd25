"""An encoder as one graph that serves every adapter.

    input_ids, attention_mask   int64 [B, S], padded on the right
    adapter_ids                 int64 [B or 1, 1]: each row's slot in the banks; 0 is "nothing here"
    <bank>                      fp32 [N, R of each part, width], one for each BankSpec; slot 0 zeros
    -> hidden fp32 [B, S, H], mean fp32 [B, H] over the tokens of the mask

B rows, S tokens, N slots, R rank, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptx.encoder.families import is_bert_shaped
from adaptx.onnx.bert import bert_model
from adaptx.runtime.layout import BankSpec

if TYPE_CHECKING:
    import onnx

    from adaptx.encoder.encoder import Encoder


def build(encoder: Encoder, sites: Sequence[str]) -> tuple[onnx.ModelProto, list[BankSpec]]:
    """The fp32 model of an encoder with banks at `sites`; without sites the plain encoder."""
    if is_bert_shaped(encoder.config):
        return bert_model(encoder, sites)
    from adaptx.onnx.traced import traced_model

    return traced_model(encoder, sites)
