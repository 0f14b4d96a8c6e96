"""A language model small enough to train from scratch on a CPU, speaking Qwen's dialect.

The architecture is Qwen3, the chat format Hermes tool calls as Qwen models write them, so that whatever
works with the tiny model works with a real one. Only the tokenizer is its own: trained on the task's
text, with single digits, and with the fixed strings around a tool call as one token each, so that a step
costs about a dozen tokens instead of fifty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from elpo.config import TinyModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

MAX_POSITIONS = 2048
MAX_VOCAB_SIZE = 2048
"""A bound, seldom reached: merging stops when the training text has no pair left that occurs twice."""

END = "<|im_end|>"
PAD = "<|endoftext|>"

SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    END,
    "<|im_start|>system\n",
    "\n<|im_start|>user\n",
    "\n<|im_start|>assistant\n",
    "\n<|im_start|>user\n<tool_response>\n",
    f"\n</tool_response>{END}\n<|im_start|>assistant\n",
)
"""Tokens that text from outside can never turn into; frames that contain one are of the same kind."""

CALL_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    '\n<tool_call>\n{"name": "python", "arguments": {"code": "',
    '"}}\n</tool_call>',
)
"""Ordinary added tokens, as Qwen has them: they stay visible when special tokens are dropped. The openings of
calls of other tools that the conversations offer are added to them."""

MIN_LINE_LENGTH = 24
"""Characters from which on a line that opens every conversation is one token."""

PIECES = (
    r"\d"  # a digit is always alone, even in a word or after a space
    r"| ?\\[A-Za-z]+\{?"  # \boxed{
    r"| ?[A-Za-z_]+(?:\.[A-Za-z_]+)+\(?"  # book.add(
    r"| ?\p{L}+(?: (?=\d))?"  # with the space before a number
    r"| ?[^\s\p{L}\d]+\n*"
    r"|\s+"
)
"""Merges never cross the borders of these pieces."""

CHAT_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- if messages and messages[0].role == 'system' %}{% set ns.system = messages[0].content %}{% endif -%}
{%- if ns.system or tools -%}
{{- '<|im_start|>system\n' + ns.system -}}
{%- if tools -%}
{{- '\n' if ns.system -}}
{{- 'Tools: ' -}}
{%- for tool in tools -%}
{{- (tool.function if tool.function is defined else tool).name + (', ' if not loop.last else '') -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- if not loop.first %}{{ raise_exception('a system message can only be the first') }}{% endif -%}
{%- elif message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif -%}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif -%}
{%- else -%}
{%- set content = message.content if message.content is string else '' -%}
{{- '<|im_start|>' + message.role + '\n' + content -}}
{%- for tool_call in message.tool_calls or [] -%}
{%- set call = tool_call.function if tool_call.function is defined else tool_call -%}
{{- '\n' if content or not loop.first -}}
{{- '<tool_call>\n{"name": ' + call.name | tojson + ', "arguments": ' -}}
{{- call.arguments if call.arguments is string else call.arguments | tojson -}}
{{- '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
"""Qwen3's format without reasoning; tools are listed by name only, which is all the tiny model can use."""


def build_tiny(
    conversations: Sequence[Mapping[str, Any]], config: TinyModelConfig, seed: int = 0
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """A randomly initialised model with a tokenizer for `conversations`.

    The same arguments give the same weights and the same tokenizer. Both are saved with
    `save_pretrained` and loaded by the Auto classes of transformers.

    Args:
        conversations: `{"messages": [...], "tools": [...]}` each; what the tokenizer is trained on.
        config: the sizes of the model; the vocabulary is as large as the text needs.
        seed: of the weights. The global random state is left as it was.
    """
    tokenizer = train_tokenizer(conversations)
    return initial_model(config, tokenizer, seed), tokenizer


def train_tokenizer(conversations: Sequence[Mapping[str, Any]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `CHAT_TEMPLATE`, trained on the conversations as it renders them.

    Any text is encoded without loss; text unlike the training text just takes more tokens.

    Raises:
        ValueError: there are no conversations.
    """
    if not conversations:
        raise ValueError("a tokenizer needs conversations to be trained on; give at least one")
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB_SIZE,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_training_text(conversations), trainer)
    # the longest added token that matches wins, so a frame beats the tokens it begins with
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    fixed = (*CALL_TOKENS, *_call_openings(conversations), *_common_lines(conversations))
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in fixed])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=CHAT_TEMPLATE,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _call_openings(conversations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a call begins with, up to its first argument, of every offered tool that takes a string first."""
    openings = set()
    for conversation in conversations:
        for tool in conversation.get("tools") or ():
            function = tool["function"]
            name, arguments = function["name"], function["parameters"]["properties"]
            first = next(iter(arguments), None)
            if first is not None and arguments[first].get("type") == "string":
                openings.add(f'\n<tool_call>\n{{"name": "{name}", "arguments": {{"{first}": "')
    return sorted(openings - set(CALL_TOKENS))


def _common_lines(conversations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Long lines that the first message of every conversation has, such as a task's instructions."""
    lines = [set(str(c["messages"][0]["content"]).split("\n")) for c in conversations]
    return sorted(line for line in set.intersection(*lines) if len(line) >= MIN_LINE_LENGTH)


def _training_text(conversations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rendered conversations without the added tokens, which are never split into pieces."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    renderer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=CHAT_TEMPLATE)
    calls = (*CALL_TOKENS, *_call_openings(conversations))
    fixed = (*SPECIAL_TOKENS, *calls, *_common_lines(conversations))
    added = sorted(fixed, key=len, reverse=True)
    between = re.compile("|".join(map(re.escape, added)))
    for conversation in conversations:
        rendered = renderer.apply_chat_template(
            conversation["messages"], tools=conversation.get("tools"), tokenize=False
        )
        yield from between.split(str(rendered))


def initial_model(config: TinyModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 for `tokenizer`. The global random state is left as it was."""
    import torch
    from transformers import Qwen3ForCausalLM

    architecture = tiny_architecture(config, len(tokenizer))
    architecture.eos_token_id, architecture.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(architecture)
    model.eval()
    return model


def tiny_architecture(config: TinyModelConfig, vocab_size: int) -> Qwen3Config:
    """The tiny model as transformers describes it, without special tokens."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.hidden_size // config.num_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=None,
        bos_token_id=None,
    )
