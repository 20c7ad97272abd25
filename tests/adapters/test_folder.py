import json
import pickle

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.numpy import load_file, save_file

from adaptx import Adapter, Encoder, tasks
from adaptx.adapters.bank import Bank
from adaptx.errors import FingerprintError, FolderError, OptionError, OutputExists
from tests.adapters.peft_oracle import adapter_like, inputs, peft_model, plain_model

CONFIG = LoraConfig(
    r=4, lora_alpha=12, target_modules="all-linear", rank_pattern={"query": 2}, use_rslora=True
)
TASK = tasks.Classification(("michezo", "siasa", "afya"))


@pytest.fixture
def adapter(small):
    config = LoraConfig(**{**CONFIG.to_dict(), "init_lora_weights": False})
    return Adapter.new(small, TASK, config, name="sw-topics", language="sw", max_length=40)


@pytest.fixture
def saved(adapter, tmp_path):
    return adapter.save(tmp_path / "sw-topics")


def same_weights(one, two):
    ours, theirs = one.state_dict(), two.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_adapter_comes_back_exactly(small, adapter, saved):
    again = Adapter.load(saved, small)
    same_weights(adapter, again)
    assert again.facts == adapter.facts
    assert again.task == TASK
    texts = ["Rais amezungumza.", "Timu imeshinda."]
    assert again.head is not None
    assert small.predict(texts, again) == small.predict(texts, adapter)


def test_the_folder_is_as_described(saved):
    names = {path.name for path in saved.iterdir()}
    weights = {"adapter_model.safetensors", "head.safetensors"}
    assert names == weights | {"adapter_config.json", "adaptx.json", "README.md"}
    manifest = json.loads((saved / "adaptx.json").read_text())
    assert manifest["files"].keys() == names - {"adaptx.json"}
    assert manifest["language"] == "sw"
    assert "library_name: peft" in (saved / "README.md").read_text()


def test_peft_loads_our_folder_exactly(small, adapter, saved):
    model = PeftModel.from_pretrained(plain_model(small.folder), str(saved)).eval()
    state = model.state_dict()
    for site, part in adapter.sites.items():
        for ours, letter in ((part.a, "A"), (part.b, "B")):
            key = f"base_model.model.{site}.lora_{letter}.default.weight"
            assert torch.equal(state.pop(key), ours)
    assert not [key for key in state if "lora_" in key]
    ids, mask = inputs()
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask)[0]
        ours = small.hidden(ids, mask, Bank.of([adapter], small).route([1]))
    real = mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pefts_folder_loads_exactly(small, tmp_path, dtype):
    model = peft_model(small.folder, {"default": CONFIG}).to(dtype)
    model.save_pretrained(str(tmp_path / "theirs"))
    wanted = adapter_like(model.float(), small, "default", CONFIG)
    found = Adapter.load(tmp_path / "theirs", small)
    same_weights(found, wanted)
    assert [s.scale for s in found.sites.values()] == [s.scale for s in wanted.sites.values()]
    assert found.name == "theirs"


def test_pefts_folder_goes_through_ours_and_back(small, tmp_path):
    peft_model(small.folder, {"default": CONFIG}).save_pretrained(str(tmp_path / "theirs"))
    ours = Adapter.load(tmp_path / "theirs", small)
    ours.save(tmp_path / "ours")
    before = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    after = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_pefts_folder_needs_an_encoder_and_must_fit_it(small, small_folders, tmp_path):
    peft_model(small.folder, {"default": CONFIG}).save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(FolderError, match="give the encoder"):
        Adapter.load(tmp_path / "theirs")
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("key.lora_A.weight"))
    save_file({k: v for k, v in tensors.items() if k != key}, path)
    with pytest.raises(FolderError, match=f"lacks 1 tensors: {key}"):
        Adapter.load(tmp_path / "theirs", small)
    save_file({**tensors, "base_model.model.left.over": tensors[key]}, path)
    with pytest.raises(FolderError, match=r"1 tensors too many .*left\.over"):
        Adapter.load(tmp_path / "theirs", small)
    save_file({**tensors, key: tensors[key][:, :-1].copy()}, path)
    with pytest.raises(FolderError, match="doesn't fit the encoder"):
        Adapter.load(tmp_path / "theirs", small)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "absent", "empty"])
def test_damaged_weights_are_refused(small, saved, name, damage):
    path = saved / name
    data = bytearray(path.read_bytes())
    if damage == "absent":
        path.unlink()
    else:
        data[-3] ^= 1
        path.write_bytes({"flipped": data, "truncated": data[:-9], "empty": b""}[damage])
    with pytest.raises(FolderError, match=name):
        Adapter.load(saved, small)


def test_a_changed_config_is_refused(small, saved):
    path = saved / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 12', '"lora_alpha": 24'))
    with pytest.raises(FolderError, match="changed or damaged"):
        Adapter.load(saved, small)


def test_a_card_may_be_edited(small, saved):
    with (saved / "README.md").open("a") as card:
        card.write("More words.\n")
    assert Adapter.load(saved, small).name == "sw-topics"


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        from pathlib import Path

        return Path.touch, (self.path,)


@pytest.mark.parametrize("kept", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickle_offered_as_weights_is_refused_and_not_run(small, tmp_path, kept):
    folder, proof = tmp_path / "theirs", tmp_path / "it-ran"
    peft_model(small.folder, {"default": CONFIG}).save_pretrained(str(folder))
    (folder / "adapter_model.safetensors").unlink()
    (folder / kept).write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(FolderError, match="pickle"):
        Adapter.load(folder, small)
    assert not proof.exists()


def test_the_encoder_must_be_the_one_it_was_trained_on(saved, small_folders):
    other = Encoder.from_pretrained(small_folders["roberta"])
    with pytest.raises(FingerprintError):
        Adapter.load(saved, other)


def test_nan_weights_are_refused(small, tmp_path):
    model = peft_model(small.folder, {"default": CONFIG})
    next(p for n, p in model.named_parameters() if "lora_A" in n).data[0, 0] = float("nan")
    model.save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(FolderError, match="NaN"):
        Adapter.load(tmp_path / "theirs", small)


def test_an_existing_folder_is_kept_unless_overwritten(small, adapter, saved):
    other = Adapter.new(small, TASK, None, name="probe")
    with pytest.raises(OutputExists, match="--overwrite"):
        other.save(saved)
    same_weights(Adapter.load(saved, small), adapter)
    other.save(saved, overwrite=True)
    assert Adapter.load(saved, small).facts.method == "probe"
    assert not (saved / "adapter_model.safetensors").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["sw-topics"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "a\ud800", "none"])
def test_a_name_that_cant_be_is_refused(small, name):
    with pytest.raises(OptionError, match=r"adapter's name|called 'none'"):
        Adapter.new(small, TASK, None, name=name)


def test_the_real_adapter_folder_is_under_6_mb(encoder, tmp_path):
    config = LoraConfig(r=16, target_modules="all-linear")
    adapter = Adapter.new(encoder, TASK, config, name="x")
    folder = adapter.save(tmp_path / "x")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6
    assert adapter.parameters_count / encoder.parameters < 0.013
