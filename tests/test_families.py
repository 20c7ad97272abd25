"""What holds for every family of encoders: opening, adapters as in PEFT, training, the export."""

import copy
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import adaptx as ax
from adaptx.adapters.bank import Bank
from adaptx.data.read import Example
from adaptx.encoder.families import FAMILIES
from adaptx.encoder.opening import load_model
from adaptx.encoder.sites import Site
from adaptx.errors import SiteError
from tests.adapters.peft_oracle import adapter_like, inputs, peft_model, plain_model
from tests.encoder.families import write_encoder

ROWS = ["a", None, "c", "b", "a", "b"]


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, small_folders):
    return ax.Encoder.from_pretrained(small_folders[request.param])


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def three_configs():
    return {
        "a": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        "b": LoraConfig(r=7, lora_alpha=3, target_modules=r".*\.\d+\..*[qQ].*|.*mlp\.Wo"),
        "c": LoraConfig(r=2, lora_alpha=16, use_rslora=True, target_modules="all-linear"),
    }


# Opening


def test_without_a_route_the_answers_are_transformers_bit_for_bit(encoder):
    plain = plain_model(encoder.folder, attn_implementation="eager")
    ids, mask = inputs()
    with torch.no_grad():
        wanted = plain(input_ids=ids, attention_mask=mask)[0]
        found = encoder.hidden(ids, mask)
    assert torch.equal(found, wanted)
    linears = [n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)]
    assert list(encoder.sites) == linears
    assert (encoder.text.max_length, encoder.text.pad_id) == (64, 1)
    assert encoder.embed(["Habari", " ".join(["neno"] * 100)]).shape == (2, 32)


# Under transformers 4.57 and 5 alike: the fingerprint, and the first numbers of an answer.
KNOWN = {
    "bert": (
        "0bbf2270f4d82c95b2060341eebb98431062461669ddb8b9cbd1f433b48b5a53",
        [-0.48935, 0.79452, 0.91723],
    ),
    "roberta": (
        "101dfe9f6b2a7932a80bae8107edc8811d65f3251300c66888600ec051300671",
        [-0.91419, 0.54636, 3.37184],
    ),
    "xlm-roberta": (
        "38bc1c816431366ed765ec2acd110f44fedffe907049dae45edfc23a5ffa8823",
        [-0.91419, 0.54636, 3.37184],
    ),
    "distilbert": (
        "7087581e79ecc35be6c3a11e4f100086ae87e3810bfe19a2eab00120dc58aaf5",
        [-0.58112, -1.13172, 0.15504],
    ),
    "deberta-v2": (
        "9d2569a22ff10478e4b49459c7dc4334f1cbe82fc4d77e65db434d37cd71918d",
        [0.34202, -0.06354, 1.30769],
    ),
    "modernbert": (
        "b9c165d31c1c309370351c20dc0c45a01eac9fa049e1ebae0eb921be01dd4b92",
        [-0.54388, -0.12473, 0.12821],
    ),
}


def test_every_transformers_gives_the_same_fingerprint_and_answers(encoder):
    """Adapters move between them; so a family's facts must be read alike."""
    ids, mask = inputs(1, 40)
    with torch.no_grad():
        found = encoder.hidden(ids, mask)[0].mean(0)
    fingerprint, numbers = KNOWN[encoder.config.model_type]
    assert encoder.fingerprint == f"sha256:{fingerprint}"
    torch.testing.assert_close(found[:3], torch.tensor(numbers), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("distilbert", {"activation": "relu"}),
        ("deberta-v2", {"pos_att_type": "c2p"}),
        ("deberta-v2", {"max_relative_positions": 20}),
        ("modernbert", {"local_attention": 8}),
        ("modernbert", {"global_attn_every_n_layers": 2}),
        ("modernbert", {"local_rope_theta": 10_000.0}),
    ],
    ids=str,
)
def test_a_setting_that_changes_answers_changes_the_fingerprint(tmp_path, family, change):
    plain = ax.Encoder.from_pretrained(write_encoder(tmp_path / "plain", family))
    changed = ax.Encoder.from_pretrained(write_encoder(tmp_path / "changed", family, **change))
    assert plain.fingerprint != changed.fingerprint


def test_a_rows_answer_is_the_same_alone_and_beside_longer_ones(encoder):
    ids, mask = inputs()
    with torch.no_grad():
        together = encoder.hidden(ids, mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = encoder.hidden(ids[[row], :length], mask[[row], :length])
            close(alone[0], together[row, :length])


def test_no_dropout_is_left(encoder):
    rates = [m.p for m in encoder.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates and not any(rates)
    ids, mask = inputs()
    with encoder.checkpointing(), torch.no_grad():  # in train() mode
        one, two = encoder.hidden(ids, mask), encoder.hidden(ids, mask)
    assert torch.equal(one, two)


# Adapters


def test_one_adapter_answers_and_learns_as_in_peft(encoder):
    config = three_configs()["a"]
    model = peft_model(encoder.folder, {"a": config})
    adapter = adapter_like(model, encoder, "a", config)
    check_against_peft(encoder, model, [adapter], ["a"] * 6)


def test_a_mixed_batch_answers_and_learns_as_each_row_alone_in_peft(encoder):
    configs = three_configs()
    model = peft_model(encoder.folder, configs)
    adapters = [adapter_like(model, encoder, name, configs[name]) for name in configs]
    check_against_peft(encoder, model, adapters, ROWS)


def check_against_peft(encoder, model, adapters, rows):
    """Rows of one adapter go through PEFT with that one active; all through ours at once."""
    ids, mask = inputs(len(rows))
    slots = {None: 0, **{adapter.name: i for i, adapter in enumerate(adapters, 1)}}
    route = Bank.of(adapters, encoder).route([slots[row] for row in rows])
    found = encoder.hidden(ids, mask, route)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    weights *= mask.unsqueeze(-1)
    (found * weights).sum().backward()
    with torch.no_grad():
        plain = encoder.hidden(ids, mask)
    for name in slots:
        own = [i for i, row in enumerate(rows) if row == name]
        if not own:
            continue
        real = mask[own].bool()
        if name is None:
            close(found[own][real], plain[own][real])
            continue
        model.set_adapter(name)
        theirs = model(input_ids=ids[own], attention_mask=mask[own])[0]
        close(found[own][real], theirs[real])
        assert (plain[own][real] - theirs[real]).abs().max() > 1e-3  # the adapter acts
        (theirs * weights[own]).sum().backward()
    for adapter in adapters:
        for site, part in adapter.sites.items():
            linear = model.base_model.model.get_submodule(site)
            for ours, sides in ((part.a, linear.lora_A), (part.b, linear.lora_B)):
                wanted = sides[adapter.name].weight.grad
                scale = wanted.abs().max().clamp(min=1.0)
                close(ours.grad / scale, wanted / scale)


def test_checkpointing_recomputes_with_the_forwards_route(encoder):
    grads = []
    for checkpointing in (False, True):
        adapters = [
            ax.Adapter.new(
                encoder,
                None,
                LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"),
                name=str(seed),
                seed=seed,
            )
            for seed in (1, 2)
        ]
        bank = Bank.of(adapters, encoder)
        ids, mask = inputs(4)
        with encoder.checkpointing() if checkpointing else torch.enable_grad():
            loss = encoder.hidden(ids, mask, bank.route([1, 0, 2, 1])).pow(2).sum()
            encoder.hidden(ids, mask, bank.route([2]))
            loss.backward()
        grads.append([p.grad for adapter in adapters for p in adapter.parameters()])
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads[1])
    for plain, recomputed in zip(*grads, strict=True):
        scale = plain.abs().max()
        close(recomputed / scale, plain / scale)


def test_merging_is_the_routed_forward(encoder):
    config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    adapter = ax.Adapter.new(encoder, None, config, name="x")
    ids, mask = inputs()
    merged = encoder.merged_model(adapter.deltas())
    with torch.no_grad():
        routed = encoder.hidden(ids, mask, Bank.of([adapter], encoder).route([1]))
        wanted = merged(input_ids=ids, attention_mask=mask)[0]
    close(routed[mask.bool()], wanted[mask.bool()])
    assert not any(isinstance(module, Site) for module in merged.modules())


def test_pefts_default_sites_or_an_error_that_lists_the_sites(encoder):
    family, config = encoder.config.model_type, LoraConfig(r=2)
    try:
        model = get_peft_model(plain_model(encoder.folder), copy.deepcopy(config))
    except ValueError:  # PEFT has no default for the family
        with pytest.raises(SiteError, match=f"default for '{family}'.*all-linear") as caught:
            ax.Adapter.new(encoder, None, config, name="x")
        for site in encoder.sites:
            assert re.sub(r"^.*\d\.", "", site) in str(caught.value)
    else:
        adapter = ax.Adapter.new(encoder, None, config, name="x")
        theirs = [n for n, _ in model.base_model.model.named_modules() if n.endswith(".lora_A")]
        assert [f"{site}.lora_A" for site in adapter.sites] == theirs


# DeBERTa: its position tables go through sites too

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
    configs = three_configs()
    model = peft_model(folder, configs)
    adapters = [adapter_like(model, encoder, name, configs[name]) for name in configs]
    check_against_peft(encoder, model, adapters, ROWS)


# Training


def test_training_lowers_the_loss(encoder):
    texts = [f"{word} na {other}" for word in ("samaki", "mpira") for other in "abcdefgh"]
    rows = [Example(text, text.split()[0]) for text in texts]
    task = ax.tasks.Classification(["mpira", "samaki"])
    losses = []
    for checkpointing in (False, True):
        adapter = ax.train(
            encoder,
            task,
            LoraConfig(r=4, target_modules="all-linear"),
            name="x",
            train=rows,
            dev=None,
            epochs=6,
            batch_size=8,
            lr=1e-2,
            checkpointing=checkpointing,
        )
        losses.append([entry["loss"] for entry in adapter.facts.training["history"]])
        assert losses[-1][-1] < 0.5 * losses[-1][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
