"""A small encoder of each family, from its config class, with random weights."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from adaptx.encoder.bundled import bundled_folder

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 1,
}
DEBERTA = {  # as mDeBERTa-v3 has them, smaller
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
MODERNBERT = {  # as mmBERT has them, with other bases and a window that a short text outgrows
    "num_hidden_layers": 4,
    "local_attention": 6,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 40_000.0,
}
CONFIGS = {
    "bert": (BertConfig, {"max_position_embeddings": 64}),
    "roberta": (RobertaConfig, {"max_position_embeddings": 66, "type_vocab_size": 1}),
    "xlm-roberta": (XLMRobertaConfig, {"max_position_embeddings": 66, "type_vocab_size": 1}),
    "distilbert": (DistilBertConfig, {"hidden_dim": 64, "max_position_embeddings": 64}),
    "deberta-v2": (DebertaV2Config, {"max_position_embeddings": 64, **DEBERTA}),
    "modernbert": (ModernBertConfig, {"max_position_embeddings": 64, **MODERNBERT}),
}


PIECES = 16_000


def write_encoder(folder: Path, family: str, **changes) -> Path:
    """Write an encoder of a family; `changes` go into its config."""
    made_for, options = CONFIGS[family]
    # One family has the whole tokenizer: to read 250,000 pieces takes longer than most tests do.
    whole = family == "bert"
    vocabulary = 250_037 if whole else PIECES + 1
    model = AutoModel.from_config(
        made_for(**{"vocab_size": vocabulary, **SHAPE, **options, **changes}),
        attn_implementation="eager",
    )
    if hasattr(model, "pooler"):
        model.pooler = None
    # By numpy, in the order of the names: the same on every machine and transformers. Large enough
    # that a wrong path shows.
    random = np.random.default_rng(7)
    for name, parameter in sorted(model.named_parameters()):
        scale = float(name.endswith("weight") and "norm" in name.lower())
        drawn = random.standard_normal(tuple(parameter.shape), dtype=np.float32)
        parameter.data.copy_(torch.from_numpy(scale + np.float32(0.3) * drawn))
    model.save_pretrained(folder)
    source = bundled_folder("multilingual-e5-small")
    shutil.copy(source / "tokenizer_config.json", folder)
    if whole:
        shutil.copy(source / "tokenizer.json", folder)
    else:
        (folder / "tokenizer.json").write_text(_cut(source / "tokenizer.json"))
    return folder


@functools.cache
def _cut(path: Path) -> str:
    """The real tokenizer with its first pieces only: the special tokens, then the frequent ones."""
    tokenizer = json.loads(path.read_text())
    del tokenizer["model"]["vocab"][PIECES:]
    tokenizer["added_tokens"][-1]["id"] = PIECES  # <mask>
    return json.dumps(tokenizer, ensure_ascii=False)
