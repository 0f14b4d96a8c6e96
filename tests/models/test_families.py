"""Qwen2.5, Qwen3 and Llama 3: the same conversation in their own templates, as their templates write it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elpo.cli import main
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.tool_calls import MalformedCall, parse_llama_call
from elpo.tasks.tool_turns import PYTHON_SCHEMA
from elpo.training.model_check import check_model
from elpo.types import ToolCall
from tests.models.families import FAMILIES, model_of, save_family, tokenizer_of

OUTPUT = 'he said "7"\nü'
QUESTION = {"role": "user", "content": "reach 7"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "python", "arguments": {"code": '"a\\n"'}}}],
}
FEEDBACK = {"role": "tool", "name": "python", "content": OUTPUT}
ANSWER = {"role": "assistant", "content": "\\boxed{7}"}


def dialogue_of(family: str) -> Dialogue:
    return Dialogue(tokenizer_of(family), [PYTHON_SCHEMA])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_are_the_conversation_as_the_template_renders_it(family: str) -> None:
    dialogue, tokenizer = dialogue_of(family), tokenizer_of(family)
    pieces = [
        dialogue.prompt_ids([QUESTION]),
        dialogue.assistant_ids(CALL),
        dialogue.feedback_ids(OUTPUT),
        dialogue.assistant_ids(ANSWER),
    ]
    joined = tokenizer.decode(np.concatenate(pieces).tolist(), skip_special_tokens=False)
    messages = [QUESTION, CALL, FEEDBACK, ANSWER]
    whole = tokenizer.apply_chat_template(
        messages, tools=[PYTHON_SCHEMA], tokenize=False, date_string="26 Jul 2024"
    )
    if family == "qwen3":  # each turn was the last one when it was written
        assert joined.count("<think>\n\n</think>\n\n") == 2 and whole.count("<think>") == 1
        joined = joined.replace("<think>\n\n</think>\n\n", "", 1)
    assert joined == whole.rstrip("\n")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_reads_back_and_text_is_none(family: str) -> None:
    dialogue = dialogue_of(family)
    assert dialogue.call_format == ("llama" if family == "llama3" else "hermes")
    ids = dialogue.assistant_ids(CALL)
    assert int(ids[-1]) == dialogue.end_id and (ids == dialogue.end_id).sum() == 1
    assert dialogue.tool_call(dialogue.text(ids)) == ToolCall("python", {"code": '"a\\n"'})
    assert dialogue.tool_call(dialogue.text(dialogue.assistant_ids(ANSWER))) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_of_tools_hold_no_control_token(family: str) -> None:
    dialogue, tokenizer = dialogue_of(family), tokenizer_of(family)
    special = set(tokenizer.all_special_ids)
    plain, hostile = dialogue.feedback_ids("7"), dialogue.feedback_ids(" ".join(tokenizer.all_special_tokens))
    assert sum(int(i) in special for i in hostile) == sum(int(i) in special for i in plain)
    assert len(hostile) > len(plain)


def test_the_prompt_does_not_depend_on_the_day() -> None:
    text = tokenizer_of("llama3").decode(dialogue_of("llama3").prompt_ids([QUESTION]).tolist())
    assert "Today Date: 26 Jul 2024" in text and text.count("<|begin_of_text|>") == 1


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('{"name": "f", "parameters": {"x": 1}}', ToolCall("f", {"x": 1})),
        ('<|python_tag|>{"name": "f", "parameters": {}}', ToolCall("f", {})),
        (' {"type": "function", "name": "f", "parameters": {}} and so on', ToolCall("f", {})),
        ('The set {1, 2} and {"name": "f"}', None),
        ("{1, 2}", None),
        ("", None),
    ],
)
def test_llama_calls(text: str, call: ToolCall | None) -> None:
    assert parse_llama_call(text) == call


@pytest.mark.parametrize(
    "text",
    ['{"name": "f", ', "<|python_tag|>print(1)", '{"parameters": {}}', '{"name": "f", "parameters": 3}'],
)
def test_malformed_llama_calls(text: str) -> None:
    with pytest.raises(MalformedCall):
        parse_llama_call(text)


def broken(family: str, template: str | None = None, **changes: Any) -> Any:
    tokenizer = copy.deepcopy(tokenizer_of(family))
    if template is not None:
        tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def template_without(family: str, start: str, end: str) -> str:
    template = str(tokenizer_of(family).chat_template)
    before, _, rest = template.partition(start)
    assert rest, start
    return before + rest.partition(end)[2]


def without_tools() -> Any:
    return broken("qwen2_5", template_without("qwen2_5", "{%- if tools -%}", "{%- endif -%}"))


def with_calls_of_its_own() -> Any:
    template = str(tokenizer_of("llama3").chat_template)
    return broken("llama3", template.replace('\\n\\n{"name"', '\\n\\n[call] {"name"'))


@pytest.mark.parametrize(
    ("family", "tokenizer", "message"),
    [
        ("qwen2_5", without_tools, "does not show the tools"),
        ("qwen2_5", lambda: broken("qwen2_5", chat_template=None), "has no chat template"),
        ("llama3", with_calls_of_its_own, "in a format that cannot be read"),
    ],
    ids=["no tools", "no template", "unknown calls"],
)
def test_unusable_models_are_refused_with_a_remedy(family: str, tokenizer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_model("it", model_of(family).config, tokenizer(), [PYTHON_SCHEMA])


def test_a_vocabulary_that_does_not_fit_is_refused() -> None:
    tokenizer = tokenizer_of("qwen3")
    architecture = model_of("qwen3", vocab_size=len(tokenizer) - 1).config
    with pytest.raises(ValueError, match=rf"resize_token_embeddings\({len(tokenizer)}\)"):
        check_model("it", architecture, tokenizer, [PYTHON_SCHEMA])


def test_the_end_of_a_turn_is_what_the_template_writes() -> None:
    """Base models name another token as their end."""
    dialogue = Dialogue(broken("qwen2_5", eos_token="<|endoftext|>"))
    assert dialogue.tokenizer.decode([dialogue.end_id]) == "<|im_end|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_check_model_says_what_was_found(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_family(family, tmp_path / family)
    assert main(["check", "model", str(folder)]) == 0
    out = capsys.readouterr().out
    assert ("llama" if family == "llama3" else "hermes") in out
    assert ("<|eot_id|>" if family == "llama3" else "<|im_end|>") in out
    assert main(["check", "model", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_an_unknown_model_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["check", "model", "nobody/no-such-model"]) == 2
    err = capsys.readouterr().err
    assert "model.path" in err and "check the name nobody/no-such-model" in err and err.count("\n") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_trees_are_packed_in_every_family(family: str) -> None:
    """The sampler's tokens get the probabilities of a plain forward pass, in rows and in trees."""
    from elpo.packing import tree_layout
    from elpo.training.learner import SampledLogProbs
    from elpo.training.tree_attention import packing_obstacle

    model = model_of(family)
    ids = torch.arange(20) * 7 % 200
    layout = tree_layout([-1, 0, 0], [8, 6, 6])
    sampled = torch.arange(20) >= 8
    rows = torch.stack([ids[:14], torch.cat([ids[:8], ids[14:]])])
    expected = torch.log_softmax(model(rows).logits, -1)[:, 7:-1].gather(-1, rows[:, 8:, None])[..., 0]
    assert packing_obstacle(model) is None
    packed, _ = SampledLogProbs(model)(ids, sampled, layout)
    torch.testing.assert_close(packed[8:], expected.flatten(), rtol=1e-4, atol=1e-5)
