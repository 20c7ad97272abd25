"""Methods that bring a model of their own: PEFT's beyond LoRA, and full fine-tuning."""

import numpy as np
import peft
import pytest
import torch

import adaptx as ax
from adaptx.data.records import Example, Tagged
from adaptx.errors import FolderError, OptionError, SiteError

TOPICS = ax.tasks.Classification(labels=["afya", "michezo"])
ROWS = [
    Example(text, label)
    for label, texts in {
        "afya": ["Daktari alimpa mgonjwa dawa", "Hospitali mpya imefunguliwa", "Chanjo ni salama"],
        "michezo": ["Timu imeshinda mechi", "Mabao mawili dakika za mwisho", "Kombe la dunia"],
    }.items()
    for text in texts
]
TEXTS = [row.text for row in ROWS]
QV = ["query", "value"]
CONFIGS = {
    "dora": peft.LoraConfig(r=4, use_dora=True, target_modules="all-linear"),
    "lora": peft.LoraConfig(r=4, bias="lora_only", target_modules=QV),
    "pissa": peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=QV),
    "adalora": peft.AdaLoraConfig(
        total_step=6, init_r=4, target_r=2, tinit=1, tfinal=1, target_modules=QV
    ),
    "ia3": peft.IA3Config(target_modules=["key", "output.dense"], feedforward_modules=[]),
    "vera": peft.VeraConfig(r=4, target_modules=QV),
    "loha": peft.LoHaConfig(r=4, target_modules=QV),
    "lokr": peft.LoKrConfig(r=4, target_modules=QV),
    "oft": peft.OFTConfig(oft_block_size=8, target_modules=QV),
    "boft": peft.BOFTConfig(boft_block_size=4, target_modules=QV),
    "hra": peft.HRAConfig(r=4, target_modules=QV),
    "fourierft": peft.FourierFTConfig(n_frequency=50, target_modules=QV),
    "ln_tuning": peft.LNTuningConfig(target_modules=["LayerNorm"]),
    "randlora": peft.RandLoraConfig(r=4, target_modules=QV),
    "vblora": peft.VBLoRAConfig(num_vectors=8, vector_length=32, r=2, target_modules=QV),
    "miss": peft.MissConfig(r=4, target_modules=QV),
    "shira": peft.ShiraConfig(r=4, target_modules=QV),
}


def fit(encoder, config, **options):
    settings = {"epochs": 2, "lr": 1e-2, "batch_size": 2, "seed": 3} | options
    return ax.train(encoder, TOPICS, config, name="x", train=ROWS, **settings)


def scores(encoder, adapters, texts=TEXTS):
    return np.array([list(answer.scores.values()) for answer in encoder.predict(texts, adapters)])


@torch.no_grad()
def states(model, encoder):
    batch = encoder.text.batch(encoder.text.ids(TEXTS), range(len(TEXTS)))
    input_ids, mask = torch.tensor(batch.input_ids), torch.tensor(batch.attention_mask)
    found = model(input_ids=input_ids, attention_mask=mask)[0]
    return found[mask.bool()]


@pytest.mark.parametrize("method", [*CONFIGS, "full"])
def test_a_method_trains_saves_loads_and_merges_and_leaves_the_encoder(small, tmp_path, method):
    before = small.embed(TEXTS)
    adapter = fit(small, CONFIGS.get(method) or ax.Full())
    assert np.array_equal(small.embed(TEXTS), before)
    assert adapter.facts.method == ("lora" if method == "pissa" else method)
    assert adapter.facts.way == ("model" if method == "full" else "own pass")
    untrained = ax.Adapter.new(small, TOPICS, CONFIGS.get(method) or ax.Full(), name="x", seed=3)
    moved = {
        name
        for name, weight in adapter.weights().items()
        if name.startswith("model.") and not torch.equal(weight, untrained.weights()[name])
    }
    assert moved
    again = ax.Adapter.load(adapter.save(tmp_path / "a"), small)
    assert again.facts == adapter.facts
    np.testing.assert_allclose(scores(small, again), scores(small, adapter), atol=1e-6)
    merged = again.merged_model(small).eval()
    assert not any("lora" in name or "base_layer" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(
        states(merged, small), states(adapter.model.eval(), small), rtol=1e-4, atol=2e-5
    )


def test_frozen_tensors_are_held_once(small):
    adapter = ax.Adapter.new(small, TOPICS, CONFIGS["dora"], name="x")
    shared = {id(p) for p in small.model.parameters()}
    ids = [id(p) for p in adapter.model.parameters()]
    assert len(shared & set(ids)) == len(shared)
    assert adapter.parameters_count < 0.01 * small.parameters


def test_one_call_answers_with_every_kind_of_adapter(small):
    lora = fit(small, peft.LoraConfig(r=2, target_modules=QV))
    dora, full, probe = fit(small, CONFIGS["dora"]), fit(small, ax.Full()), fit(small, None)
    rows = [lora, dora, None, full, probe, dora]
    answers = small.predict(TEXTS, rows)
    for adapter in {id(a): a for a in rows}.values():
        alone = small.predict(TEXTS, adapter)
        for mixed, own, used in zip(answers, alone, rows, strict=True):
            if used is not adapter:
                continue
            if adapter is None:
                np.testing.assert_allclose(mixed, own, rtol=1e-4, atol=1e-5)
            else:
                assert mixed.scores == pytest.approx(own.scores, abs=1e-5)


def test_full_fine_tuning_lowers_the_loss_and_is_an_encoder_again(small, tmp_path):
    adapter = fit(small, ax.Full(dropout=0.0), epochs=12, lr=3e-3)
    losses = [entry["loss"] for entry in adapter.facts.training["history"]]
    assert losses[-1] < 0.5 * losses[0]
    folder = adapter.save(tmp_path / "full")
    tuned = ax.Encoder.from_pretrained(folder)
    assert tuned.fingerprint != small.fingerprint
    torch.testing.assert_close(states(tuned.model, tuned), states(adapter.model, small))


def test_peft_opens_what_was_trained_here(small, tmp_path):
    from tests.adapters.peft_oracle import plain_model

    adapter = fit(small, CONFIGS["dora"])
    folder = adapter.save(tmp_path / "dora")
    theirs = peft.PeftModel.from_pretrained(plain_model(small.folder), folder).eval()
    torch.testing.assert_close(states(theirs, small), states(adapter.model, small))


def test_adalora_gives_its_ranks_out_over_the_real_number_of_steps(small):
    adapter = fit(small, CONFIGS["adalora"], epochs=4)
    assert adapter.config.total_step == 12
    assert CONFIGS["adalora"].total_step == 6  # the one that was given stays as it is
    ranks = [int((p != 0).sum()) for n, p in adapter.model.named_parameters() if "lora_E" in n]
    assert sum(ranks) < 4 * len(ranks)


def test_adalora_counts_windows_where_a_record_has_several(small):
    tagged = [Tagged(tuple("abcdefghij" * 6), ("X", "Y") * 30)] * 3
    adapter = ax.train(
        small, ax.tasks.TokenClassification(scheme="plain"), CONFIGS["adalora"], name="x",
        train=tagged, epochs=1, batch_size=2, max_length=24,
    )  # fmt: skip
    text = ax.tasks.TokenClassification(("X", "Y"), scheme="plain")
    windows = text.windows(small.text, small.prefix, text.training_inputs(tagged), 24)
    many = sum(map(len, windows))
    assert many > 6 and adapter.config.total_step == -(-many // 2)


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        (peft.PromptTuningConfig(num_virtual_tokens=4), OptionError, "PROMPT_TUNING adds virtual"),
        (peft.IA3Config(target_modules=["no"], feedforward_modules=[]), SiteError, "IA3"),
        (peft.LoraConfig(use_dora=True, target_modules=["no"]), SiteError, "query"),
        (peft.FourierFTConfig(n_frequency=9999, target_modules=QV), OptionError, "FOURIERFT"),
        ("lora", OptionError, "config is a str"),
    ],
)
def test_what_cant_be_is_refused_by_name(small, config, error, said):
    with pytest.raises(error, match=said):
        fit(small, config)


def test_moving_an_adapter_leaves_the_encoder_where_it_is(small):
    before = {name: p.clone() for name, p in small.model.state_dict().items()}
    adapter = ax.Adapter.new(small, TOPICS, CONFIGS["dora"], name="x")
    adapter.to(torch.bfloat16).requires_grad_(True)
    own = [name for name, w in adapter.weights().items() if w.dtype == torch.bfloat16]
    assert any(name.startswith("model.") for name in own) and "head.weight" in own
    after = small.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in small.model.parameters())


def test_an_adapters_own_model_follows_the_encoder(small_folders):
    encoder = ax.Encoder.from_pretrained(small_folders["bert"])
    adapters = [ax.Adapter.new(encoder, TOPICS, c, name="x") for c in (CONFIGS["dora"], ax.Full())]
    encoder.to(torch.float64)  # as good as another device
    for adapter in adapters:
        adapter.to(torch.float64)
        tensors = [*adapter.parameters(), *adapter.buffers()]
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}
        adapter.hidden(encoder, torch.ones(1, 3, dtype=int), torch.ones(1, 3, dtype=int))


def test_the_adalora_that_is_saved_is_the_one_that_was_best(small, tmp_path):
    config = peft.AdaLoraConfig(
        total_step=6, init_r=4, target_r=1, tinit=2, tfinal=2, target_modules=QV
    )
    adapter = fit(small, config, dev=ROWS, epochs=8, lr=5e-2)
    again = ax.Adapter.load(adapter.save(tmp_path / "a"), small)
    np.testing.assert_allclose(scores(small, again), scores(small, adapter), atol=1e-6)


def test_damage_and_another_encoder_are_refused(small, small_folders, tmp_path):
    folder = fit(small, CONFIGS["dora"]).save(tmp_path / "dora")
    with pytest.raises(FolderError, match="was trained on encoder"):
        ax.Adapter.load(folder, ax.Encoder.from_pretrained(small_folders["roberta"]))
    with pytest.raises(FolderError, match="give it, as in"):
        ax.Adapter.load(folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FolderError, match="changed or damaged"):
        ax.Adapter.load(folder, small)
