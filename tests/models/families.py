"""Small stand-ins for families of models: their architecture with random weights, their template, and a
tokenizer made here, since those of the models themselves are megabytes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TEMPLATES = Path(__file__).parents[1] / "fixtures/templates"

QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_CALLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA_MORE = ("<|eom_id|>", "<|python_tag|>")

FAMILIES = ("qwen2_5", "qwen3", "llama3")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@cache
def tokenizer_of(family: str) -> Any:
    """Bytes as tokens, and the special tokens of the family."""
    core = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = (*LLAMA, *LLAMA_MORE) if family == "llama3" else QWEN
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    if family != "llama3":
        core.add_tokens([AddedToken(text, special=False, normalized=False) for text in QWEN_CALLS])
    names = (
        {"bos_token": LLAMA[0], "eos_token": "<|eot_id|>"}  # no pad token, as the original
        if family == "llama3"
        else {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=(TEMPLATES / f"{family}.jinja").read_text(),
        clean_up_tokenization_spaces=False,
        **names,
    )


def model_of(family: str, **changes: Any) -> Any:
    """The architecture with random weights that make choices differ."""
    sizes = {**SIZES, "vocab_size": len(tokenizer_of(family)) + 3, **changes}
    torch.manual_seed(0)
    model: Any = {
        "qwen2_5": lambda: Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8)),
        "llama3": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
    }[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


def save_family(family: str, folder: Path, **changes: Any) -> Path:
    """A model folder with random weights."""
    model_of(family, **changes).save_pretrained(folder)
    tokenizer_of(family).save_pretrained(folder)
    return folder
