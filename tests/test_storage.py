import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_numpy
from safetensors.torch import save_file

from adaptx import storage
from adaptx.errors import FolderError, OutputExists
from adaptx.storage import check_file, check_output, new_folder, read_manifest, read_tensors

seeded = settings(derandomize=True, deadline=None, max_examples=200)


def fill(folder, text="weights"):
    (folder / "weights.txt").write_text(text, encoding="utf-8")
    storage.write_manifest(folder, "adapter", {"name": "sw"})


def written(path, text="weights"):
    with new_folder(path) as made:
        fill(made, text)
    return path


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_a_new_folder_appears_whole_and_alone(tmp_path):
    with new_folder(tmp_path / "out") as made:
        assert made.parent == tmp_path
        (made / "deep" / "er").mkdir(parents=True)
        (made / "deep" / "er" / "a.txt").write_text("a", encoding="utf-8")
        assert not (tmp_path / "out").exists()
    assert contents(tmp_path) == {
        "out": None,
        "out/deep": None,
        "out/deep/er": None,
        "out/deep/er/a.txt": b"a",
    }


def test_a_new_folder_takes_a_string_and_makes_its_parents(tmp_path):
    with new_folder(str(tmp_path / "a" / "b" / "out")) as made:
        fill(made)
    assert (tmp_path / "a" / "b" / "out" / "weights.txt").read_text(encoding="utf-8") == "weights"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "out") as made:
        fill(made)
        raise error
    assert contents(tmp_path) == {}


def test_an_exception_keeps_the_old_folder(tmp_path):
    written(tmp_path / "out", "old")
    before = contents(tmp_path)
    with pytest.raises(ValueError), new_folder(tmp_path / "out", overwrite=True) as made:
        fill(made, "new")
        raise ValueError
    assert contents(tmp_path) == before


def test_a_reader_sees_the_old_folder_until_the_new_one_is_whole(tmp_path):
    written(tmp_path / "out", "old")
    with new_folder(tmp_path / "out", overwrite=True) as made:
        fill(made, "new")
        assert (tmp_path / "out" / "weights.txt").read_text(encoding="utf-8") == "old"
    assert (tmp_path / "out" / "weights.txt").read_text(encoding="utf-8") == "new"


def test_overwrite_replaces_the_whole_folder(tmp_path):
    out = written(tmp_path / "out", "old")
    (out / "left-over.txt").write_text("old", encoding="utf-8")
    with new_folder(out, overwrite=True) as made:
        fill(made, "new")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {path.name for path in out.iterdir()} == {"weights.txt", "adaptx.json"}
    assert (out / "weights.txt").read_text(encoding="utf-8") == "new"


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    out = written(tmp_path / "out", "old")
    before, real, asked = contents(tmp_path), Path.rename, []

    def rename(path, target):
        asked.append(path.name)
        if path.name.startswith(".out.new"):
            raise OSError("the disk went away")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="went away"), new_folder(out, overwrite=True) as made:
        fill(made, "new")
    assert len(asked) == 3
    assert contents(tmp_path) == before


def test_an_older_folder_is_refused_without_overwrite(tmp_path):
    out = written(tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(OutputExists, match=r"exists already.*--overwrite \(overwrite=True\)"):
        check_output(out, overwrite=False)
    with pytest.raises(OutputExists), new_folder(out):
        pytest.fail("the block ran")
    assert contents(tmp_path) == before
    assert check_output(out, overwrite=True) == out


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_adaptx_did_not_write_is_refused_even_with_overwrite(tmp_path, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(OutputExists, match=r"wasn't written by adaptx \(it has no adaptx.json\)"):
        check_output(tmp_path / "out", overwrite)
    with pytest.raises(OutputExists), new_folder(tmp_path / "out", overwrite=overwrite):
        pytest.fail("the block ran")
    assert contents(tmp_path) == {"out": None, "out/thesis.txt": b"precious"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_as_output_is_refused_and_kept(tmp_path, overwrite):
    (tmp_path / "out").write_text("precious", encoding="utf-8")
    with pytest.raises(OutputExists), new_folder(tmp_path / "out", overwrite=overwrite):
        pytest.fail("the block ran")
    assert contents(tmp_path) == {"out": b"precious"}


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    assert check_output(tmp_path / "out", overwrite=False) == tmp_path / "out"
    written(tmp_path / "out")
    assert set(contents(tmp_path)) == {"out", "out/weights.txt", "out/adaptx.json"}


FULL_DISK = """
import resource, signal, sys
from adaptx.storage import new_folder, write_manifest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with new_folder(sys.argv[1], overwrite=True) as made:
    (made / "small.txt").write_text("fits")
    (made / "large.bin").write_bytes(bytes(1_000_000))
    write_manifest(made, "adapter", {})
"""


@pytest.mark.parametrize("older", [False, True])
def test_a_full_disk_leaves_nothing_behind_and_keeps_the_old_folder(tmp_path, older):
    if older:
        written(tmp_path / "out", "old")
    before = contents(tmp_path)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "OSError: [Errno 27] File too large" in run.stderr
    assert contents(tmp_path) == before


def test_the_manifest_lists_the_sha256_of_every_file(tmp_path):
    out = written(tmp_path / "out", "abc")
    manifest = read_manifest(out, "adapter")
    # sha256("abc"), FIPS 180-2, appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest == {
        "schema": 1,
        "kind": "adapter",
        "name": "sw",
        "files": {"weights.txt": digest},
    }
    assert check_file(out, "weights.txt", manifest) == out / "weights.txt"


def test_json_is_written_as_readable_utf_8(tmp_path):
    storage.write_json(tmp_path / "a.json", {"name": "Adé ሰላም"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "Adé ሰላም"\n}\n'
    assert storage.read_json(tmp_path / "a.json") == {"name": "Adé ሰላም"}


@pytest.mark.parametrize("place", [0, 3, -1])
def test_one_changed_byte_is_found(tmp_path, place):
    out = written(tmp_path / "out")
    data = bytearray((out / "weights.txt").read_bytes())
    data[place] ^= 1
    (out / "weights.txt").write_bytes(data)
    manifest = read_manifest(out, "adapter")
    with pytest.raises(FolderError, match=r"weights\.txt was changed or damaged") as caught:
        check_file(out, "weights.txt", manifest)
    assert manifest["files"]["weights.txt"] in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    out = written(tmp_path / "out")
    (out / "weights.txt").unlink()
    with pytest.raises(FolderError, match=r"weights\.txt is missing"):
        check_file(out, "weights.txt", read_manifest(out, "adapter"))


def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path):
    out = written(tmp_path / "out")
    (out / "more.txt").write_text("more", encoding="utf-8")
    with pytest.raises(FolderError, match=r"more\.txt is missing \(or adaptx\.json doesn't list"):
        check_file(out, "more.txt", read_manifest(out, "adapter"))


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused_with_both_numbers(tmp_path, schema):
    manifest = {"schema": schema, "kind": "adapter", "files": {}}
    storage.write_json(tmp_path / "adaptx.json", manifest)
    with pytest.raises(FolderError) as caught:
        read_manifest(tmp_path, "adapter")
    assert f"has schema {schema!r}, and this adaptx reads 1" in str(caught.value)


def test_another_kind_is_refused_with_both_kinds(tmp_path):
    written(tmp_path / "out")
    with pytest.raises(FolderError, match="holds a 'adapter', not a 'merged'"):
        read_manifest(tmp_path / "out", "merged")


@pytest.mark.parametrize("files", [{}, {"files": None}, {"files": ["weights.txt"]}])
def test_a_manifest_without_files_is_refused(tmp_path, files):
    storage.write_json(tmp_path / "adaptx.json", {"schema": 1, "kind": "adapter", **files})
    with pytest.raises(FolderError, match="lists no files"):
        read_manifest(tmp_path, "adapter")


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("7", "int"), ("null", "NoneType")])
def test_a_manifest_that_is_no_object_is_refused(tmp_path, text, kind):
    (tmp_path / "adaptx.json").write_text(text, encoding="utf-8")
    with pytest.raises(FolderError, match=f"holds a JSON {kind}, not an object"):
        read_manifest(tmp_path, "adapter")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"schema": 1',
        b'{"schema": "\xff"}',
        b"[" * 200_000,
        b'{"schema": ' + b"7" * 5000 + b"}",
    ],
    ids=["empty", "cut", "latin-1", "nested", "digits"],
)
def test_a_manifest_that_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "adaptx.json").write_bytes(content)
    with pytest.raises(FolderError, match=r"adaptx\.json can't be read as JSON"):
        read_manifest(tmp_path, "adapter")


def test_a_missing_manifest_asks_about_the_folder(tmp_path):
    with pytest.raises(FolderError, match=r"has no adaptx\.json: is this the right folder\?"):
        read_manifest(tmp_path, "adapter")
    with pytest.raises(FolderError, match=r"has no adaptx\.json: is this the right folder\?"):
        read_manifest(tmp_path / "nowhere", "adapter")


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(FolderError):
        read_manifest(tmp_path / "out", "adapter")


def test_the_cache_follows_its_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("ADAPTX_CACHE", raising=False)
    assert storage.cache_dir() == tmp_path / "xdg" / "adaptx"
    monkeypatch.setenv("ADAPTX_CACHE", str(tmp_path / "chosen"))
    assert storage.cache_dir() == tmp_path / "chosen"
    monkeypatch.delenv("ADAPTX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.cache_dir() == tmp_path / "home" / ".cache" / "adaptx"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arrays_come_back_exactly_as_fp32(tmp_path, dtype):
    generator = torch.Generator().manual_seed(5)
    tensors = {
        "a": (torch.randn(5, 3, generator=generator) * 1e3).to(dtype),
        "b": torch.tensor([0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny / 4]).to(
            dtype
        ),
        "scalar": torch.tensor(0.1).to(dtype),
        "none": torch.zeros(0, 4, dtype=dtype),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_tensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        wanted = tensor.float().numpy()
        assert (found[name].dtype, found[name].shape) == (np.float32, wanted.shape)
        assert found[name].tobytes() == wanted.tobytes()


@pytest.mark.parametrize("length", [128, 640, 19280])
def test_a_header_length_that_looks_like_a_pickles_first_bytes_is_no_pickle(tmp_path, length):
    path = tmp_path / "a.safetensors"
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    bare = len(save_numpy({"a": array}, {"pad": ""})) - 8 - array.nbytes
    data = save_numpy({"a": array}, {"pad": "x" * (length - bare)})
    assert struct.unpack("<Q", data[:8]) == (length,)
    path.write_bytes(data)
    assert read_tensors(path)["a"].tolist() == array.tolist()


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 60, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save_numpy({"a": np.ones((4, 4), np.float32)})[:kept])
    with pytest.raises(FolderError, match=r"a\.safetensors is damaged or truncated"):
        read_tensors(path)


def test_bytes_after_the_last_tensor_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save_numpy({"a": np.ones((4, 4), np.float32)}) + b"more")
    with pytest.raises(FolderError, match=r"a\.safetensors is damaged or truncated"):
        read_tensors(path)


@pytest.mark.parametrize("place", [0, 1, 7, 8, 9])
def test_a_flipped_byte_in_the_header_is_refused(tmp_path, place):
    path = tmp_path / "a.safetensors"
    data = bytearray(save_numpy({"a": np.ones((4, 4), np.float32)}))
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(FolderError):
        read_tensors(path)


@seeded
@given(st.data())
def test_any_changed_byte_gives_a_folder_error_or_finite_arrays(tmp_path_factory, data):
    stream = bytearray(
        save_numpy({"a": np.arange(6, dtype=np.float16), "b": np.ones((2, 2), np.float32)})
    )
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "a.safetensors"
    path.write_bytes(stream)
    try:
        found = read_tensors(path)
    except FolderError as error:
        assert str(path) in str(error)
    else:
        assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in found.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused_by_tensor_name(tmp_path, dtype, value):
    good, bad = torch.ones(3), torch.tensor([1.0, value, 2.0])
    save_file({"good": good.to(dtype), "bad": bad.to(dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(FolderError, match="tensor 'bad' has NaN or infinite values"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_another_dtype_is_refused_by_its_name(tmp_path, dtype):
    save_file({"a": torch.ones(3).to(dtype)}, tmp_path / "a.safetensors")
    names = {torch.int64: "I64", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
    with pytest.raises(FolderError, match=f"the dtype {names[dtype]}; F32, F16 or BF16"):
        read_tensors(tmp_path / "a.safetensors")


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def dump(path, payload, how):
    if how == "zip":
        torch.save(payload, path)
    elif how == "legacy":
        torch.save(payload, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(payload, protocol=how))


@pytest.mark.parametrize("how", ["zip", "legacy", *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_a_pickle_is_refused_without_running_its_code(tmp_path, how):
    path, target = tmp_path / "a.safetensors", tmp_path / "ran"
    dump(path, {"a": Payload(target)}, how)
    with pytest.raises(FolderError) as caught:
        read_tensors(path)
    assert not target.exists()
    if how not in (0, 1):  # which have no signature
        assert "is a pickle, not safetensors" in str(caught.value)
    with path.open("rb") as file:  # the payload is a live one
        pickle.load(file) if isinstance(how, int) else torch.load(file, weights_only=False)
    assert target.is_dir()


@pytest.mark.parametrize("name", ["nowhere.safetensors", "folder"])
def test_a_weights_file_that_cannot_be_opened_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FolderError, match=f"{name} can't be read"):
        read_tensors(tmp_path / name)


def test_the_hand_written_layout_of_safetensors_is_read(tmp_path):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes([0x80, 0x3F, 0x20, 0xC0])
    path = Path(tmp_path / "a.safetensors")
    path.write_bytes(data)
    assert read_tensors(path)["a"].tolist() == [1.0, -2.5]


def test_one_kind_of_thing_never_replaces_another(tmp_path):
    with new_folder(tmp_path / "out", kind="adapter") as made:
        storage.write_manifest(made, "adapter", {})
    assert check_output(tmp_path / "out", True, "adapter") == tmp_path / "out"
    with pytest.raises(OutputExists, match="holds a 'adapter', and a 'merged' would replace it"):
        check_output(tmp_path / "out", True, "merged")
    with pytest.raises(OutputExists), new_folder(tmp_path / "out", overwrite=True, kind="merged"):
        raise AssertionError
