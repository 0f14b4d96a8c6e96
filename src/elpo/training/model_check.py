"""Can this model be trained here? Found out from its configuration and tokenizer, before any weights load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elpo.rollout.dialogue import Dialogue


def read_architecture(path: str) -> Any:
    """The transformers configuration of the model at `path`, a folder or a hub name.

    Raises:
        ValueError: it cannot be had; the message says what to try.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path: {_first_line(error)}; {_REMEDY.format(path)}") from error


def read_tokenizer(path: str) -> Any:
    """The tokenizer at `path`.

    Raises:
        ValueError: it cannot be had, as `read_architecture`.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path: no tokenizer: {_first_line(error)}; {_REMEDY.format(path)}") from error


def check_model(
    name: str, architecture: Any, tokenizer: Any, tool_schemas: Sequence[Mapping[str, Any]]
) -> tuple[Dialogue, dict[str, str]]:
    """The model's dialogue, and what was found by name, for `elpo check model`.

    Raises:
        ValueError: the model cannot be trained with these tools; the message names the remedy.
    """
    text = architecture.get_text_config()
    num_ids = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if num_ids > text.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has ids up to {num_ids - 1}, the model only room for {text.vocab_size}; "
            "use the tokenizer of the model's own folder, or give the model room with "
            f"model.resize_token_embeddings({num_ids}) and save it"
        )
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"{name}: the model has layers of {', '.join(sorted(kinds - {'full_attention'}))}, and sampling "
            "needs full attention in every layer; use a model that has it, such as Qwen2.5, Qwen3 or Llama 3"
        )
    try:
        dialogue = Dialogue(tokenizer, tool_schemas)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    prompt = tokenizer.decode(dialogue.prompt_ids([{"role": "user", "content": "x"}]).tolist())
    hidden = [tool for tool in _names(tool_schemas) if tool not in prompt]
    if hidden:
        raise ValueError(
            f"{name}: the chat template does not show the tools ({', '.join(hidden)}) to the model; use a "
            "template with tool support, such as that of the instruction-tuned model of the same family"
        )
    end = tokenizer.decode([dialogue.end_id])
    pad = tokenizer.pad_token
    found = {
        "architecture": f"{architecture.model_type}, {text.num_hidden_layers} layers",
        "vocabulary": f"{num_ids} token ids, room for {text.vocab_size}",
        "end of turn": f"{end} ({dialogue.end_id})"
        + ("" if end == tokenizer.eos_token else f", which is not the tokenizer's eos {tokenizer.eos_token}"),
        "padding": f"{pad}; not used here, rows end behind a causal mask"
        if pad
        else "none, and none is needed",
        "tool calls": f"{dialogue.call_format} format",
        "tools in the prompt": ", ".join(_names(tool_schemas)) or "none asked for",
        "thinking": "the template speaks of <think>; what is sampled is kept"
        if "<think>" in tokenizer.chat_template
        else "none",
    }
    return dialogue, found


_REMEDY = (
    "check the name {}, log in for a gated model (hf auth login), or download the model and give its folder"
)


def _names(schemas: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(schema["function"]["name"]) for schema in schemas]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
