"""Telling whether a model folder can be loaded, without loading it."""

from __future__ import annotations

import json
from pathlib import Path


def is_adapter(folder: Path) -> bool:
    """True for a folder that holds adapters (PEFT), without the model they belong to."""
    return (folder / "adapter_config.json").is_file()


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that lacks a configuration or weights, or whose weights were cut short.

    Only the headers of the weights are read.

    Raises:
        ValueError: the folder cannot be loaded; the message names the file.
    """
    if not is_adapter(folder) and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; give a folder made by save_pretrained")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not any(folder.glob("*.bin")):
        raise ValueError(f"{folder} holds no weights (*.safetensors)")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(shards - {file.name for file in weights}):
            raise ValueError(f"{folder} lacks {', '.join(missing)}; copy the whole folder")
    from safetensors import SafetensorError, safe_open

    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); copy or download it again") from error
