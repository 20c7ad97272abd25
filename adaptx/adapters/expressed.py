"""Which LoRA a bank holds: the rule by which a configuration goes to it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Options of PEFT's LoraConfig that a bank expresses exactly, and those that change no result.
EXPRESSED = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights",
}  # fmt: skip
IRRELEVANT = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "runtime_config", "megatron_core",
}  # fmt: skip
INITS = (True, False, "gaussian")
HEADS = {"classifier", "score"}  # what modules_to_save may name: the head, which is adaptx's own
PLAIN = {"bias": "none", "qalora_group_size": 16}  # PEFT's defaults that aren't empty


def unexpressed(options: Mapping[str, Any], plain: Mapping[str, Any] = PLAIN) -> str | None:
    """The option of a LoRA, such as `use_dora=True`, that a bank can't express exactly, or None.

    `options` as adapter_config.json has them; one that is empty, or as in `plain`, asks nothing.
    """
    for name, value in options.items():
        saved = name == "modules_to_save" and isinstance(value, (list, set, tuple))
        head_alone = saved and {str(module) for module in value} <= HEADS
        known = name in EXPRESSED | IRRELEVANT or head_alone
        if not known and value and value != plain.get(name):
            return f"{name}={value!r}"
    init = options.get("init_lora_weights", True)
    return None if init in INITS else f"init_lora_weights={init!r}"
