"""DeBERTa: its position tables go through sites too, and its tokenizer may be a sentencepiece's."""

import pytest
import torch

import adaptx as ax
from adaptx.encoder.opening import load_model
from tests.adapters.peft_oracle import check_against_peft, inputs, plain_model
from tests.encoder.families import write_encoder

VARIANTS = [
    {"share_att_key": share, "position_buckets": buckets, "pos_att_type": kinds}
    for share in (True, False)
    for buckets in (-1, 8)
    for kinds in ("p2c|c2p", "c2p", "p2c")
]
VARIANTS += [
    {"share_att_key": False, "norm_rel_ebd": "none", "max_relative_positions": 5},
    {"conv_kernel_size": 3, "conv_act": "gelu", "position_biased_input": True},
    {"type_vocab_size": 2, "embedding_size": 16},
    {"relative_attention": False, "pos_att_type": None, "position_biased_input": True},
    {"pos_att_type": None},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_debertas_position_tables_take_each_rows_adapter(small, tmp_path, variant):
    folder = write_encoder(tmp_path / "deberta", "deberta-v2", vocab_size=5000, **variant)
    model = load_model(folder)[1]
    encoder = ax.Encoder(model, small.text, name="x", folder=folder, fingerprint="x", prefix="")
    ids, mask = inputs()
    with torch.no_grad():
        wanted = plain_model(folder)(input_ids=ids, attention_mask=mask)[0]
        assert torch.equal(encoder.hidden(ids, mask), wanted)
    check_against_peft(encoder)


def test_a_deberta_with_only_sentencepieces_file_opens(tmp_path):
    """As mDeBERTa-v3 has it on the Hub: transformers converts it."""
    import sentencepiece

    folder = write_encoder(tmp_path / "encoder", "deberta-v2", vocab_size=400, pad_token_id=0)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "DebertaV2Tokenizer"}')
    words = ("mpira", "samaki", "elimu")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"habari za {word} na {c}" for word in words for c in "abcdefg"]),
        model_prefix=str(folder / "spm"),
        vocab_size=25,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
    )
    encoder = ax.Encoder.from_pretrained(folder)
    assert encoder.text.pad_id == 0
    tokens = encoder.text.tokenizer.encode("habari za mpira").tokens
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert "".join(tokens[1:-1]) == "▁habari▁za▁mpira"
