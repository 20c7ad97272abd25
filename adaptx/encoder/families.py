"""What sets one family of encoders apart from another: a line for each.

Everything else is asked of the model itself. A new family is a line here, its settings, and a small
config in tests/encoder/families.py, after which every test of the families holds for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptx.errors import FolderError, OptionError, choices

_BERT = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "layer_norm_eps", "max_position_embeddings", "type_vocab_size", "pad_token_id"),
)
_DISTILBERT = (
    *("model_type", "dim", "n_layers", "n_heads", "hidden_dim", "activation"),
    *("max_position_embeddings", "sinusoidal_pos_embds"),
)
_DEBERTA = (
    *_BERT,
    *("relative_attention", "max_relative_positions", "position_buckets", "pos_att_type"),
    *("share_att_key", "norm_rel_ebd", "position_biased_input"),
    *("conv_kernel_size", "conv_groups", "conv_act"),
)
_MODERNBERT = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_activation", "norm_eps", "max_position_embeddings", "local_attention"),
    *("layer_types", "rope_parameters"),
)


@dataclass(frozen=True)
class Family:
    """Facts of a family.

    settings  the keys of its config that change results: they are part of the fingerprint
    pooler    its AutoModel has a pooler unless told otherwise
    types     its AutoModel takes token_type_ids, where the config's type_vocab_size isn't 0
    sdpa      its attention can go through torch's scaled_dot_product_attention
    behind    its positions start behind the padding id, which costs a row that many tokens
    """

    settings: tuple[str, ...]
    pooler: bool
    types: bool
    sdpa: bool
    behind: bool


FAMILIES = {
    "bert": Family(_BERT, pooler=True, types=True, sdpa=True, behind=False),
    "roberta": Family(_BERT, pooler=True, types=True, sdpa=True, behind=True),
    "xlm-roberta": Family(_BERT, pooler=True, types=True, sdpa=True, behind=True),
    "distilbert": Family(_DISTILBERT, pooler=False, types=False, sdpa=True, behind=False),
    "deberta-v2": Family(_DEBERTA, pooler=False, types=True, sdpa=False, behind=False),
    "modernbert": Family(_MODERNBERT, pooler=False, types=False, sdpa=True, behind=False),
}


def is_bert_shaped(config: Any) -> bool:
    """Whether an encoder is what adaptx builds and trains by itself: BERT's layers, which XLM-R's
    are too, with one of the usual activations.
    """
    absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
    usual = getattr(config, "hidden_act", None) in ("gelu", "relu")
    return config.model_type in ("bert", "roberta", "xlm-roberta") and usual and absolute


def check_family(folder: Path, config: Mapping[str, Any]) -> Family:
    """The family that a folder's config.json is of, before transformers does anything with it.

    Raises OptionError for a decoder, an encoder-decoder, or a family that isn't in the table.
    """
    from transformers.models.auto import modeling_auto as known

    said = config.get("model_type")
    name = said if isinstance(said, str) else None
    both = name in known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    # BERT's kin is there too, as it can be built as a decoder; what can fill a mask is no GPT.
    decoder = (
        name in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and name not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    remedy = (
        f"adaptx adapts encoders, whose tokens see the whole text, of the families "
        f"{choices(FAMILIES)}: choose one of those, such as FacebookAI/xlm-roberta-base."
    )
    if config.get("is_encoder_decoder") or (both and name not in FAMILIES):
        raise OptionError(f"{folder} is an encoder-decoder (family {said!r}). {remedy}")
    if config.get("is_decoder") or (decoder and name not in FAMILIES):
        raise OptionError(f"{folder} is a decoder (family {said!r}). {remedy}")
    if name is None or name not in FAMILIES:
        raise OptionError(f"{folder} is of the family {said!r}. {remedy}")
    return FAMILIES[name]


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change results, from a config's `to_dict`, on any transformers the same."""
    said = {key: config.get(key) for key in FAMILIES[config["model_type"]].settings}
    if config["model_type"] == "modernbert":
        said |= _layers_and_rope(config)
    return said


def _layers_and_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """ModernBERT's kinds of layers and their rotary base, as transformers 5 writes them.

    transformers 4 has one period of full layers and two bases, and reads nothing else.
    """
    if "global_rope_theta" not in config:  # transformers 5, which turns the old keys into new ones
        return {key: config[key] for key in ("layer_types", "rope_parameters")}
    period, count = config["global_attn_every_n_layers"], config["num_hidden_layers"]
    bases = {"full_attention": config["global_rope_theta"]}
    local = config["local_rope_theta"]
    bases["sliding_attention"] = bases["full_attention"] if local is None else local
    scaling = {"rope_type": "default", **(config.get("rope_scaling") or {})}
    return {
        "layer_types": [
            "sliding_attention" if i % period else "full_attention" for i in range(count)
        ],
        "rope_parameters": {kind: {**scaling, "rope_theta": base} for kind, base in bases.items()},
    }


def check_understood(folder: Path, written: Mapping[str, Any], read: Mapping[str, Any]) -> None:
    """Raise FolderError where this transformers reads a config.json otherwise than it is meant.

    transformers 4 passes over what 5 writes of a ModernBERT's layers, and takes its defaults.
    """
    if "global_rope_theta" not in read:  # no ModernBERT, or transformers 5
        return
    found = _layers_and_rope(read)
    for key in found.keys() & written.keys():
        if written[key] != found[key]:
            raise FolderError(
                f"{folder / 'config.json'} was written by transformers 5 with {key} "
                f"{written[key]}, which the one that is installed here reads as {found[key]}: "
                f"pip install 'transformers>=5', or take the encoder's original folder."
            )


def model_inputs(config: Any, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """What an AutoModel takes: int64 `[B, S]` each. Token types are always 0.

    They are said outright where a family has them: some exporters can't infer them.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if FAMILIES[config.model_type].types and config.type_vocab_size:
        inputs["token_type_ids"] = torch.zeros_like(input_ids)
    return inputs
