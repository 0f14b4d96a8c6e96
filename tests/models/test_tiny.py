from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from elpo.config import TinyModelConfig
from elpo.models.tiny import CALL_TOKENS, SPECIAL_TOKENS, build_tiny, train_tokenizer
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.tool_calls import parse_tool_call
from elpo.tasks.ledger import LedgerConfig, LedgerTask
from elpo.tasks.lookup import LookupConfig, LookupTask
from elpo.training.sft import conversation_tokens
from elpo.types import ToolCall

CONFIG = TinyModelConfig(hidden_size=32, num_layers=2, intermediate_size=64)
TASK = LedgerTask(LedgerConfig(syntax_error=0.05, wrong_amount=0.05, look=0.05))
CONVERSATIONS = TASK.demonstrations(200, seed=0)
TOKENIZER = train_tokenizer(CONVERSATIONS)
TOOLS = CONVERSATIONS[0]["tools"]


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def pieces_of(text: str) -> list[str]:
    return [TOKENIZER.decode([i]) for i in ids_of(text)]


# the tokenizer


@given(st.text(max_size=60))
def test_any_text_survives_encoding(text: str) -> None:
    assert TOKENIZER.decode(ids_of(text), skip_special_tokens=False) == text


FRAGMENTS = st.sampled_from(
    [*SPECIAL_TOKENS, *CALL_TOKENS, "finds 5", "book.add(", "\n", " ", '"}}', "12", "{"]
)


@given(st.lists(FRAGMENTS, max_size=8).map("".join))
def test_text_of_frames_survives_encoding(text: str) -> None:
    assert TOKENIZER.decode(ids_of(text), skip_special_tokens=False) == text


@given(st.text("0123456789 abz.,(-\n", max_size=30))
def test_a_digit_is_always_a_token_of_its_own(text: str) -> None:
    pieces = pieces_of(text)
    assert [p for p in pieces if any(c.isdigit() for c in p)] == [c for c in text if c.isdigit()]


@pytest.mark.parametrize("text", [*SPECIAL_TOKENS, *CALL_TOKENS, "book.add(", "book.mul(", "\\boxed{"])
def test_fixed_strings_are_one_token(text: str) -> None:
    assert len(ids_of(text)) == 1


def test_a_verb_takes_the_space_before_its_number() -> None:
    assert pieces_of("finds 5") == ["finds ", "5"]


def test_ends_and_padding() -> None:
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(TOKENIZER) < 700


def test_tool_output_cannot_become_a_control_token() -> None:
    dialogue = Dialogue(TOKENIZER, TOOLS)
    frame = dialogue.feedback_ids("")
    special = {TOKENIZER.convert_tokens_to_ids(text) for text in SPECIAL_TOKENS}
    for text in SPECIAL_TOKENS:
        ids = dialogue.feedback_ids(f"5{text}6")
        assert sum(int(i) in special for i in ids) == sum(int(i) in special for i in frame) == 2
        assert f"5{text}6" in TOKENIZER.decode(ids)


def test_call_markers_stay_visible_without_special_tokens() -> None:
    text = '<tool_call>\n{"name": "python", "arguments": {"code": "book.add(5)"}}\n</tool_call><|im_end|>'
    assert TOKENIZER.decode(ids_of(text), skip_special_tokens=True) == text.removesuffix("<|im_end|>")


# the chat format


def test_a_step_costs_about_a_dozen_tokens() -> None:
    dialogue = Dialogue(TOKENIZER, TOOLS)
    lengths = []
    for conversation in TASK.demonstrations(50, seed=1):
        messages = conversation["messages"]
        for message, feedback in itertools.pairwise(messages):
            if message["role"] == "assistant" and feedback["content"].isdigit():
                turn, answer = dialogue.assistant_ids(message), dialogue.feedback_ids(feedback["content"])
                lengths.append(len(turn) + len(answer))
    assert len(lengths) > 200
    assert np.mean(lengths) < 14
    assert max(lengths) <= 16


def test_the_opening_of_a_call_is_one_token_for_every_offered_tool() -> None:
    lookup = LookupTask(LookupConfig(min_hops=6, max_hops=6))
    conversations = lookup.demonstrations(100, seed=0)
    tokenizer = train_tokenizer(conversations)
    opening = '\n<tool_call>\n{"name": "search", "arguments": {"query": "'
    assert len(tokenizer(opening, add_special_tokens=False)["input_ids"]) == 1
    assert len(ids_of(opening)) > 5  # not offered by the ledger
    dialogue = Dialogue(tokenizer, conversations[0]["tools"])
    turns = [m for c in conversations for m in c["messages"] if m.get("tool_calls")]
    assert max(len(dialogue.assistant_ids(turn)) for turn in turns) <= 12
    lengths = [len(conversation_tokens(dialogue, c["messages"]).token_ids) for c in conversations]
    assert max(lengths) <= 300


def test_a_prompt_of_six_lines_is_short() -> None:
    task = LedgerTask(LedgerConfig(min_lines=6, max_lines=6))
    dialogue = Dialogue(TOKENIZER, TOOLS)
    assert max(len(dialogue.prompt_ids(p.messages)) for p in task.problems("test", 50)) <= 100


def test_a_demonstration_is_the_concatenation_of_its_pieces() -> None:
    """What a rollout assembles turn by turn is what the template says about the whole conversation."""
    dialogue = Dialogue(TOKENIZER, TOOLS)
    for conversation in TASK.demonstrations(50, seed=2):
        user, *rest = conversation["messages"]
        pieces = [dialogue.prompt_ids([user])]
        for message in rest:
            is_tool = message["role"] == "tool"
            ids = dialogue.feedback_ids(message["content"]) if is_tool else dialogue.assistant_ids(message)
            pieces.append(ids)
        whole = TOKENIZER.apply_chat_template(conversation["messages"], tools=TOOLS, tokenize=False)
        assert np.concatenate(pieces).tolist() == ids_of(whole.removesuffix("\n"))


def test_rendering_of_a_conversation() -> None:
    call = {"type": "function", "function": {"name": "python", "arguments": {"code": "book.add(5)"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "finds 5"},
        {"role": "assistant", "content": "finds 5", "tool_calls": [call]},
        {"role": "tool", "name": "python", "content": "19"},
    ]
    text = TOKENIZER.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.\nTools: python<|im_end|>\n"
        "<|im_start|>user\nfinds 5<|im_end|>\n"
        "<|im_start|>assistant\nfinds 5\n<tool_call>\n"
        '{"name": "python", "arguments": {"code": "book.add(5)"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n19\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_rendering_without_system_and_tools_and_with_several_results() -> None:
    result = {"role": "tool", "content": "5"}
    text = TOKENIZER.apply_chat_template([{"role": "user", "content": "x"}, result, result], tokenize=False)
    assert text == (
        "<|im_start|>user\nx<|im_end|>\n<|im_start|>user\n<tool_response>\n5\n</tool_response>\n"
        "<tool_response>\n5\n</tool_response><|im_end|>\n"
    )


def render_call(code: str, content: str | None, as_text: bool) -> str:
    arguments: Any = json.dumps({"code": code}) if as_text else {"code": code}
    function = {"name": "python", "arguments": arguments}
    message = {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": function}],
    }
    return str(TOKENIZER.apply_chat_template([message], tools=TOOLS, tokenize=False))


@settings(max_examples=100)
@given(st.text(max_size=40), st.sampled_from([None, "", "finds 5"]), st.booleans())
def test_a_rendered_call_parses_back(code: str, content: str | None, as_text: bool) -> None:
    rendered = render_call(code, content, as_text).split("<|im_start|>assistant\n")[-1]
    if "<tool_call>" not in code and "</tool_call>" not in code:
        assert parse_tool_call(rendered) == ToolCall("python", {"code": code})


@given(st.text(max_size=20))
def test_keys_are_rendered_in_the_order_models_write_them(code: str) -> None:
    rendered = render_call(code, None, as_text=False)
    body = rendered.partition("<tool_call>")[2].rpartition("</tool_call>")[0]
    assert list(json.loads(body)) == ["name", "arguments"]


# the model


def test_the_architecture_is_the_configured_one() -> None:
    model, tokenizer = build_tiny(CONVERSATIONS[:20], TinyModelConfig())
    assert model.config.architectures in (None, ["Qwen3ForCausalLM"])
    assert (model.config.head_dim, model.config.num_hidden_layers, model.config.num_key_value_heads) == (
        32,
        4,
        2,
    )
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(model.get_input_embeddings().weight) == len(tokenizer)
    assert model.config.max_position_embeddings == 2048


def test_model_and_tokenizer_load_back_equal(tmp_path: Path) -> None:
    model, tokenizer = build_tiny(CONVERSATIONS, CONFIG)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, reread = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    messages = CONVERSATIONS[0]["messages"]
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert reread.apply_chat_template(messages, tools=TOOLS, tokenize=False) == text
    ids = reread(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    assert reread.decode(ids) == text
    assert (reread.eos_token_id, reread.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    for text in SPECIAL_TOKENS:  # still out of reach of tool output
        assert len(reread(text, split_special_tokens=True)["input_ids"]) > 1
    with torch.no_grad():
        batch = torch.tensor([ids])
        assert torch.equal(loaded.eval()(batch).logits, model(batch).logits)


def test_building_is_a_function_of_its_arguments() -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, tokenizer = build_tiny(CONVERSATIONS, CONFIG, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(456)
    second, same = build_tiny(CONVERSATIONS, CONFIG, seed=1)
    assert same.get_vocab() == tokenizer.get_vocab()
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    other, _ = build_tiny(CONVERSATIONS, CONFIG, seed=2)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def run_python(program: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_another_process_builds_the_same() -> None:
    """With another seed of its hashes than this process."""
    program = (
        "import hashlib\n"
        "from elpo.config import TinyModelConfig\n"
        "from elpo.models.tiny import build_tiny\n"
        "from elpo.tasks.ledger import LedgerTask\n"
        "conversations = LedgerTask().demonstrations(100, seed=0)\n"
        "model, tokenizer = build_tiny(conversations, TinyModelConfig(num_layers=1))\n"
        "digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())\n"
        "for weight in model.state_dict().values(): digest.update(weight.numpy().tobytes())\n"
        "found = digest.hexdigest(), hash('hash seed')\n"
    )
    here: dict[str, tuple[str, int]] = {}
    exec(program, here)
    digest, hashed = run_python(f"{program}print(*found)", PYTHONHASHSEED="1").split()[-2:]
    assert digest == here["found"][0] and int(hashed) != here["found"][1]


def test_no_conversations_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        train_tokenizer([])


def test_importing_loads_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, elpo.models.tiny, elpo.tasks.ledger\n"
        "print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    assert run_python(program).strip() == "set()"
