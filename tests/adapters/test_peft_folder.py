"""Folders that PEFT trained elsewhere answer here as they do there."""

import copy
import functools
import json
import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import (
    FourierFTConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OSFConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging

import adaptx as ax
from adaptx.adapters.folder import WEIGHTS
from adaptx.errors import FolderError, OptionError

TEXTS = ["Nimefurahi sana leo", "Habari", "Mvua kubwa ilinyesha usiku kucha huko Mwanza"]
SAVED = {  # what holds a head that a checkpoint lacks, by family
    "bert": ["pooler", "classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "modernbert": ["head", "classifier"],
}
FAMILIES = ["bert", "roberta", "xlm-roberta", "distilbert", "deberta-v2", "modernbert"]


@pytest.fixture(scope="module")
def opened(small_folders):
    return {family: ax.Encoder.from_pretrained(small_folders[family]) for family in FAMILIES}


def trained(model, config, folder, seed=0):
    """PEFT's model with every tensor of its own drawn at random, and its folder."""
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.2, generator=generator)
    model.eval().save_pretrained(folder)
    return model


@functools.cache
def pretrained(kind, folder, **options):
    logging.set_verbosity_error()
    torch.manual_seed(1)
    return kind.from_pretrained(folder, attn_implementation="eager", **options)


def classifier(folder, labels=3):
    kind = AutoModelForSequenceClassification
    return copy.deepcopy(pretrained(kind, folder, num_labels=labels))


def auto_model(folder):
    return copy.deepcopy(pretrained(AutoModel, folder))


def inputs(encoder):
    ids = encoder.text.ids([encoder.prefix + text for text in TEXTS])
    batch = encoder.text.batch(ids, range(len(ids)))
    return torch.tensor(batch.input_ids), torch.tensor(batch.attention_mask)


@torch.no_grad()
def logits(adapter, encoder):
    input_ids, mask = inputs(encoder)
    return adapter.outputs(adapter.hidden(encoder, input_ids, mask), mask)


@torch.no_grad()
def theirs(model, encoder):
    input_ids, mask = inputs(encoder)
    return model(input_ids=input_ids, attention_mask=mask)


def close(found, wanted):
    assert (found - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())


options = st.fixed_dictionaries(
    {
        "r": st.integers(1, 6),
        "lora_alpha": st.sampled_from([1, 4, 7.5]),
        "use_rslora": st.booleans(),
        "lora_dropout": st.sampled_from([0.0, 0.1]),
        "init_lora_weights": st.sampled_from([True, False, "gaussian"]),
        "pattern": st.sampled_from(["none", "suffix", "full", "regex"]),
        "layers": st.sampled_from([None, [0], 1]),
        "exclude": st.booleans(),
        "targets": st.sampled_from(["two", "all-linear", "full", "regex"]),
        "use_dora": st.booleans(),
    }
)


def lora(encoder, o, prefix, **more):
    """A LoraConfig of the options drawn, for a model whose encoder lies under `prefix`."""
    names = list(encoder.sites)
    first, second = names[0], names[1]
    leaf = [name.rpartition(".")[2] for name in (first, second)]
    targets = {
        "two": leaf,
        "all-linear": "all-linear",
        "full": [prefix + first, prefix + names[-1]],
        "regex": rf"{re.escape(prefix)}.*({leaf[0]}|{leaf[1]})",
    }[o["targets"]]
    spelt = rf"^{re.escape(prefix)}.*{leaf[0]}"
    key = {"none": None, "suffix": leaf[0], "full": prefix + first, "regex": spelt}[o["pattern"]]
    chosen = {k: o[k] for k in ("r", "lora_alpha", "use_rslora", "lora_dropout", "use_dora")}
    if key:
        chosen |= {"rank_pattern": {key: 5}, "alpha_pattern": {key: 3}}
    if o["targets"] == "two":
        if "." in (prefix + first).partition(".0.")[0]:  # PEFT finds no layer at the top level
            chosen["layers_to_transform"] = o["layers"]
        chosen["exclude_modules"] = [leaf[1]] if o["exclude"] else None
    return LoraConfig(
        target_modules=targets, init_lora_weights=o["init_lora_weights"], **chosen, **more
    )


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=16,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(o=options)
def test_every_lora_and_dora_on_a_classifier_imports_exactly(
    opened, small_folders, tmp_path, family, o
):
    encoder = opened[family]
    model = classifier(small_folders[family])
    config = lora(
        encoder,
        o,
        f"{model.base_model_prefix}.",
        task_type="SEQ_CLS",
        modules_to_save=SAVED.get(family, ["classifier"]),
    )
    folder = tmp_path / "theirs"
    shutil.rmtree(folder, ignore_errors=True)
    model = trained(model, config, folder)
    adapter = ax.Adapter.load(folder, encoder, labels=["a", "b", "c"])
    assert adapter.facts.way == ("own pass" if o["use_dora"] else "bank")
    assert adapter.task.labels == ("a", "b", "c")
    close(logits(adapter, encoder), theirs(model, encoder).logits)
    shutil.rmtree(tmp_path / "ours", ignore_errors=True)
    again = ax.Adapter.load(adapter.save(tmp_path / "ours"), encoder)
    close(logits(again, encoder), theirs(model, encoder).logits)


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(o=options)
def test_every_lora_and_dora_on_an_automodel_imports_exactly_and_goes_back(
    opened, small_folders, tmp_path, family, o
):
    encoder = opened[family]
    model = auto_model(small_folders[family])
    folder = tmp_path / "theirs"
    shutil.rmtree(folder, ignore_errors=True)
    model = trained(model, lora(encoder, o, ""), folder)
    wanted = theirs(model, encoder)[0]
    adapter = ax.Adapter.load(folder, encoder)
    input_ids, mask = inputs(encoder)
    with torch.no_grad():
        close(adapter.hidden(encoder, input_ids, mask)[mask.bool()], wanted[mask.bool()])
    shutil.rmtree(tmp_path / "ours", ignore_errors=True)
    plain = auto_model(small_folders[family])
    back = PeftModel.from_pretrained(plain, adapter.save(tmp_path / "ours")).eval()
    close(theirs(back, encoder)[0][mask.bool()], wanted[mask.bool()])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("config", "method"),
    [
        (LoraConfig(r=3, use_dora=True, target_modules="all-linear"), "dora"),
        (LoraConfig(r=3, lora_bias=True, target_modules="all-linear"), "lora"),
        (LoraConfig(r=3, bias="all", target_modules="all-linear"), "lora"),
        (LoraConfig(r=3, trainable_token_indices=[0, 2], target_modules="all-linear"), "lora"),
        (IA3Config(), "ia3"),
        (VeraConfig(r=4), "vera"),
    ],
    ids=["dora", "lora-bias", "bias-all", "tokens", "ia3", "vera"],
)
def test_what_a_bank_cant_hold_imports_exactly_too(
    opened, small_folders, tmp_path, family, config, method
):
    encoder, config = opened[family], copy.deepcopy(config)
    if method in ("ia3", "vera"):
        leaf = next(iter(encoder.sites)).rpartition(".")[2]
        config.target_modules = {leaf}
    if method == "ia3":
        config.feedforward_modules = set()
    config.task_type, config.modules_to_save = "SEQ_CLS", SAVED.get(family, ["classifier"])
    model = trained(classifier(small_folders[family]), config, tmp_path / "theirs")
    adapter = ax.Adapter.load(tmp_path / "theirs", encoder)
    assert (adapter.facts.method, adapter.facts.way) == (method, "own pass")
    close(logits(adapter, encoder), theirs(model, encoder).logits)
    again = ax.Adapter.load(adapter.save(tmp_path / "ours"), encoder)
    close(logits(again, encoder), theirs(model, encoder).logits)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, target_modules=["query"], bias="all"),
        LoraConfig(r=3, target_modules=["query"], trainable_token_indices=[0, 2]),
        LoraConfig(
            target_modules=["query"],
            trainable_token_indices={"embeddings.word_embeddings": [0, 2]},
        ),
    ],
    ids=["bias-all", "tokens", "tokens-by-module"],
)
def test_what_an_automodel_trained_beside_its_sites_imports_exactly(
    opened, small_folders, tmp_path, config
):
    encoder = opened["xlm-roberta"]
    model = trained(auto_model(small_folders["xlm-roberta"]), config, tmp_path / "theirs")
    adapter = ax.Adapter.load(tmp_path / "theirs", encoder)
    input_ids, mask = inputs(encoder)
    with torch.no_grad():
        found = adapter.hidden(encoder, input_ids, mask)
    close(found[mask.bool()], theirs(model, encoder)[0][mask.bool()])


ATTENTION = r"roberta\.encoder.*attention\.output\.dense"


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, use_dora=True, rank_pattern={"roberta.*layer.0.*query": 2}),
        LoHaConfig(r=4, alpha=4, alpha_pattern={r"roberta\.encoder\.layer\.0\..*": 64}),
        IA3Config(target_modules=ATTENTION, feedforward_modules=ATTENTION),
        IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
        FourierFTConfig(
            n_frequency=20,
            n_frequency_pattern={"roberta.encoder.layer.0.attention.self.query": 4},
        ),
        OSFConfig(effective_rank=4, rank_pattern={r"roberta.*\.0\.": 2}),
        LoraConfig(r=2, trainable_token_indices={"roberta.embeddings.word_embeddings": [0, 2]}),
    ],
    ids=["dora", "loha", "ia3-regex", "ia3-suffixes", "fourierft", "osf", "tokens"],
)
def test_what_a_configuration_matched_on_the_classs_names_it_matches_here(
    opened, small_folders, tmp_path, config
):
    encoder, config = opened["xlm-roberta"], copy.deepcopy(config)
    config.target_modules = config.target_modules or {"query", "value"}
    config.task_type = "SEQ_CLS"
    model = trained(classifier(small_folders["xlm-roberta"]), config, tmp_path / "theirs")
    adapter = ax.Adapter.load(tmp_path / "theirs", encoder)
    close(logits(adapter, encoder), theirs(model, encoder).logits)


def test_a_site_that_a_folder_of_a_method_of_its_own_lacks_is_named(theirs_folder, opened):
    def drop(tensors):
        for key in [key for key in tensors if "layer.0" in key]:
            del tensors[key]

    change(theirs_folder, drop, init_lora_weights="pissa")
    with pytest.raises(FolderError, match=r"lacks .*layer\.0"):
        ax.Adapter.load(theirs_folder, opened["roberta"])


@pytest.mark.parametrize("bias", ["none", "all"])
def test_lora_at_the_pooler_is_folded_into_the_head(opened, small_folders, tmp_path, bias):
    """BERT's pooler comes from the checkpoint, and all-linear puts a LoRA there too."""
    whole = classifier(small_folders["bert"])
    base = tmp_path / "base"
    whole.base_model.save_pretrained(base)  # with its pooler
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small_folders["bert"] / name, base)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", bias=bias)
    model = trained(whole, config, tmp_path / "theirs")
    keys = load_file(tmp_path / "theirs" / WEIGHTS)
    assert any("pooler.dense.lora_A" in key for key in keys)
    encoder = ax.Encoder.from_pretrained(base)
    adapter = ax.Adapter.load(tmp_path / "theirs", encoder)
    close(logits(adapter, encoder), theirs(model, encoder).logits)


def test_labels_come_from_the_encoders_config_where_they_fit(opened, small_folders, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(small_folders["roberta"], base)
    config = json.loads((base / "config.json").read_text())
    config["id2label"] = {"0": "mbaya", "1": "nzuri"}
    config["label2id"] = {"mbaya": 0, "nzuri": 1}
    (base / "config.json").write_text(json.dumps(config))
    model = classifier(base, labels=2)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    trained(model, lora, tmp_path / "theirs")
    encoder = ax.Encoder.from_pretrained(base)
    assert ax.Adapter.load(tmp_path / "theirs", encoder).task.labels == ("mbaya", "nzuri")


@pytest.fixture
def theirs_folder(small_folders, tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    trained(classifier(small_folders["roberta"]), config, tmp_path / "theirs")
    return tmp_path / "theirs"


def change(folder, change_tensors=None, **config):
    if change_tensors:
        tensors = load_file(folder / WEIGHTS)
        change_tensors(tensors)
        save_file(tensors, folder / WEIGHTS)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def test_another_architecture_is_refused(theirs_folder, opened):
    def rename(tensors):
        for key in list(tensors):
            tensors[key.replace("roberta.encoder.layer", "transformer.h")] = tensors.pop(key)

    change(theirs_folder, rename)
    with pytest.raises(FolderError, match="another architecture than roberta"):
        ax.Adapter.load(theirs_folder, opened["roberta"])


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 64}, "fit the encoder"),
        ({"num_hidden_layers": 3}, "4 tensors too many|6 tensors too many"),
        ({"num_hidden_layers": 1}, "lacks 4 tensors|lacks 6 tensors"),
    ],
    ids=["wide", "deep", "shallow"],
)
def test_a_folder_of_another_size_is_refused_with_the_remedy(opened, tmp_path, changes, said, dora):
    made = AutoModel.from_config(AutoConfig.from_pretrained(opened["roberta"].folder, **changes))
    trained(made, LoraConfig(r=2, target_modules=["query", "value"], use_dora=dora), tmp_path)
    with pytest.raises(FolderError, match=rf"({said}).* another encoder than .* --encoder"):
        ax.Adapter.load(tmp_path, opened["roberta"])


def test_parts_of_the_encoder_that_were_trained_whole_are_named(opened, small_folders, tmp_path):
    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["embeddings"])
    trained(auto_model(small_folders["roberta"]), config, tmp_path / "theirs")
    with pytest.raises(FolderError, match=r"modules_to_save=\['embeddings'\]"):
        ax.Adapter.load(tmp_path / "theirs", opened["roberta"])


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_2_SEQ_LM", "TOKEN_CLS"])
def test_a_decoders_folder_is_refused(theirs_folder, opened, task_type):
    change(theirs_folder, task_type=task_type)
    with pytest.raises(FolderError, match=task_type):
        ax.Adapter.load(theirs_folder, opened["roberta"])


def test_missing_and_left_over_keys_are_refused(theirs_folder, opened):
    key = "base_model.model.roberta.encoder.layer.0.attention.self.query.lora_A.weight"
    kept = load_file(theirs_folder / WEIGHTS)
    change(theirs_folder, lambda tensors: tensors.pop(key))
    with pytest.raises(FolderError, match=r"lacks 1 tensors: .*layer\.0\.attention\.self\.query"):
        ax.Adapter.load(theirs_folder, opened["roberta"])
    extra = {**kept, "base_model.model.classifier.extra.weight": torch.ones(2)}
    save_file(extra, theirs_folder / WEIGHTS)
    with pytest.raises(FolderError, match=r"1 tensors too many .*classifier\.extra\.weight"):
        ax.Adapter.load(theirs_folder, opened["roberta"])


def test_a_head_that_was_never_saved_is_refused_with_the_remedy(opened, small_folders, tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    trained(classifier(small_folders["bert"]), config, tmp_path / "theirs")
    with pytest.raises(FolderError, match=r"modules_to_save=\['classifier', 'pooler'\]"):
        ax.Adapter.load(tmp_path / "theirs", opened["bert"])


def test_labels_that_dont_fit_are_refused(theirs_folder, opened):
    with pytest.raises(OptionError, match="2 labels for the 3 outputs"):
        ax.Adapter.load(theirs_folder, opened["roberta"], labels=["a", "b"])


def test_megatron_and_unknown_methods_are_refused(theirs_folder, opened):
    change(theirs_folder, megatron_config={"x": 1}, megatron_core="os")
    with pytest.raises(FolderError, match="Megatron"):
        ax.Adapter.load(theirs_folder, opened["roberta"])
    change(theirs_folder, peft_type="NEWEST")
    with pytest.raises(FolderError, match="'NEWEST'"):
        ax.Adapter.load(theirs_folder, opened["roberta"])
