"""The text of single tokens, from the tokenizer a run has left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elpo.training.run_folder import RunFolder

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def find_tokenizer(folder: RunFolder) -> Tokenizer | None:
    """The tokenizer of a run: of a checkpoint, else of the model it began with; None where there is neither.

    Nothing is downloaded; a model of the hub is looked for among those downloaded before.
    """
    for file in _candidates(folder):
        if file.is_file():
            from tokenizers import Tokenizer

            return Tokenizer.from_file(str(file))
    return None


def token_texts(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to the text. A character made of several tokens belongs to the last of them.

    Ids the tokenizer does not have add nothing.
    """
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer, token) or "" for token in token_ids]


def _candidates(folder: RunFolder) -> list[Path]:
    files = sorted(folder.checkpoints.glob("[!.]*/model/tokenizer.json"), reverse=True)
    path = folder.config().model.path
    if path is not None:
        files.append(Path(path).expanduser() / "tokenizer.json")
        from huggingface_hub import try_to_load_from_cache

        with contextlib.suppress(ValueError):  # a folder, perhaps gone, whose path cannot be a hub name
            if isinstance(cached := try_to_load_from_cache(path, "tokenizer.json"), str):
                files.append(Path(cached))
    return files
