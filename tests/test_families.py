"""What holds for every family of encoders: opening, adapters as in PEFT, training, the export."""

import copy
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import adaptx as ax
from adaptx.adapters.bank import Bank
from adaptx.data.read import Example
from adaptx.encoder.families import FAMILIES
from adaptx.encoder.sites import Site
from adaptx.errors import SiteError
from tests.adapters.peft_oracle import MIXED, check_against_peft, close, inputs, plain_model
from tests.conftest import ROOT, SAMPLE
from tests.encoder.families import write_encoder


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, small_folders):
    return ax.Encoder.from_pretrained(small_folders[request.param])


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


@pytest.mark.parametrize("rows", [["a"] * 6, MIXED], ids=["one", "mixed"])
def test_rows_answer_and_learn_as_alone_in_peft(encoder, rows):
    check_against_peft(encoder, rows)


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
            epochs=12,
            batch_size=8,
            lr=1e-2,
            checkpointing=checkpointing,
        )
        losses.append([entry["loss"] for entry in adapter.facts.training["history"]])
        assert losses[-1][-1] < 0.5 * losses[-1][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


# The page


def commands(page):
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^adaptx (.+)$", "".join(re.findall(r"```\n(.*?)```", text, re.S)), re.M)


@pytest.mark.slow
def test_the_pages_command_runs(small_folders, tmp_path):
    (command,) = commands("encoders.md")
    for given, real in (
        ("path/to/encoder", str(small_folders["modernbert"])),
        ("train.jsonl", str(SAMPLE / "train.jsonl")),
    ):
        command = command.replace(given, real)
    done = subprocess.run(
        [sys.executable, "-m", "adaptx", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "8 sites" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_pages_table_names_every_site(encoder):
    page = (ROOT / "docs" / "encoders.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \|.*\| (.*) \|$", page, re.M))
    said = rows[encoder.config.model_type]
    named = re.findall("`(.+?)`", rows["bert"] if said == "as BERT" else said)
    found = [[site for site in encoder.sites if site.endswith(f".{suffix}")] for suffix in named]
    assert all(found)
    assert {site for sites in found for site in sites} == set(encoder.sites)
