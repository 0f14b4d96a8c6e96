"""The engine against plain forward passes and `generate` of the same model."""

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from elpo.engines.transformers import TransformersEngine
from elpo.interfaces import TurnRequest

VOCAB, END = 40, 39
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def make_model(kind="qwen3"):
    config, model = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[kind]
    torch.manual_seed(0)
    built = model(config(**SIZES, **({"head_dim": 8} if kind == "qwen3" else {}))).eval()
    with torch.no_grad():  # a random model is nearly uniform; make its choices differ
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return built


def prompt(seed, length):
    return np.random.default_rng(seed).integers(0, END, length)


def drain(engine, requests, followup=None):
    """Run `requests` to the end; `followup(turn)` gives the tokens to append, or None to release."""
    for request in requests:
        engine.submit(request)
    contexts = {request.rollout: request.token_ids for request in requests}
    by_id = {request.rollout: request for request in requests}
    turns = {request.rollout: [] for request in requests}
    open_rollouts = set(contexts)
    for _ in range(2000):
        if not open_rollouts:
            return turns
        for turn in engine.step():
            turns[turn.rollout].append(turn)
            more = followup(turn, len(turns[turn.rollout])) if followup else None
            contexts[turn.rollout] = np.concatenate([contexts[turn.rollout], turn.token_ids])
            if more is None:
                engine.release(turn.rollout)
                open_rollouts.discard(turn.rollout)
            else:
                contexts[turn.rollout] = np.concatenate([contexts[turn.rollout], more])
                old = by_id[turn.rollout]
                engine.submit(TurnRequest(old.rollout, old.group, contexts[turn.rollout], 9, old.seed))
    raise AssertionError("the engine never finished")


def reference(model, context, turn, temperature):
    """Log-probabilities and entropies of a turn from one uncached forward pass."""
    ids = torch.from_numpy(np.concatenate([context, turn.token_ids]))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(context) - 1 : -1].float() / temperature
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs.gather(-1, torch.from_numpy(turn.token_ids)[:, None])[:, 0]
    return chosen.numpy(), torch.distributions.Categorical(logits=logits).entropy().numpy()


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_reported_numbers_equal_a_plain_forward_over_several_turns(kind):
    model = make_model(kind)
    engine = TransformersEngine(model, (END,), num_slots=5, temperature=0.8)
    requests = [TurnRequest(i, i // 3, prompt(i // 3, 7 + i // 3), 9, seed=i) for i in range(9)]
    feedback = {i: prompt(100 + i, 3 + i % 3) for i in range(9)}
    turns = drain(engine, requests, lambda turn, n: feedback[turn.rollout] if n < 4 else None)
    for request in requests:
        context = request.token_ids
        assert len(turns[request.rollout]) == 4
        for turn in turns[request.rollout]:
            logprobs, entropies = reference(model, context, turn, 0.8)
            np.testing.assert_allclose(turn.logprobs, logprobs, atol=2e-5)
            np.testing.assert_allclose(turn.entropies, entropies, atol=2e-5)
            assert turn.ended == (turn.token_ids[-1] == END)
            assert END not in turn.token_ids[:-1]
            context = np.concatenate([context, turn.token_ids, feedback[request.rollout]])


def test_cold_sampling_equals_greedy_generate():
    model = make_model()
    engine = TransformersEngine(model, (END,), num_slots=2, temperature=1e-6)
    context = prompt(5, 11)
    turns = drain(engine, [TurnRequest(0, 0, context, 20, seed=1)])
    ids = torch.from_numpy(context)[None]
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=END
    )[0, len(context) :]
    assert turns[0][0].token_ids.tolist() == expected.tolist()


def test_what_is_sampled_does_not_depend_on_slots_or_company():
    model = make_model()
    requests = [TurnRequest(i, i // 4, prompt(i // 4, 12), 15, seed=i) for i in range(16)]
    many = drain(TransformersEngine(model, (END,), num_slots=16), requests)
    few = drain(TransformersEngine(model, (END,), num_slots=3), requests)
    alone = {}
    for request in requests:
        alone |= drain(TransformersEngine(model, (END,), num_slots=1), [request])
    for i in range(16):
        for other in (few, alone):
            assert many[i][0].token_ids.tolist() == other[i][0].token_ids.tolist()
            np.testing.assert_allclose(many[i][0].logprobs, other[i][0].logprobs, atol=2e-5)


def test_a_branch_feeds_one_token_of_its_prefix():
    model = make_model()
    engine = TransformersEngine(model, (END,), num_slots=4)
    context = prompt(0, 30)
    first = drain(engine, [TurnRequest(0, 0, context, 9, seed=0)])[0][0]
    assert engine.counts.fed_tokens == 30 and engine.counts.reused_tokens == 0
    prefix = np.concatenate([context, first.token_ids[:4]])
    turn = drain(engine, [TurnRequest(1, 0, prefix, 9, seed=5)])[1][0]
    assert engine.counts.reused_tokens == len(prefix) - 1
    assert engine.counts.fed_tokens == 30 + 1
    np.testing.assert_allclose(turn.logprobs, reference(model, prefix, turn, 1.0)[0], atol=2e-5)


def test_a_group_feeds_its_prompt_once_and_other_groups_share_nothing():
    engine = TransformersEngine(make_model(), (END,), num_slots=8)
    same = prompt(0, 20)
    drain(engine, [TurnRequest(i, i // 4, same, 5, seed=i) for i in range(8)])
    assert engine.counts.reused_tokens == 6 * 19  # three of each group of four
    assert engine.counts.fed_tokens == 2 * 20 + 6


def test_forgotten_prefixes_are_fed_again_and_memory_stays_bounded():
    engine = TransformersEngine(make_model(), (END,), num_slots=2)
    context = prompt(0, 20)
    drain(engine, [TurnRequest(0, 0, context, 5, seed=0)])
    assert engine.prefix_bytes > 0
    engine.forget(0)
    assert engine.prefix_bytes == 0
    drain(engine, [TurnRequest(1, 0, context, 5, seed=0)])
    assert engine.counts.reused_tokens == 0

    small = TransformersEngine(make_model(), (END,), num_slots=2, prefix_cache_mb=1)
    left = 0  # tokens whose keys and values the finished rollouts left
    for i in range(40):
        turns = drain(small, [TurnRequest(i, i, prompt(i, 400), 5, seed=i)])
        left += 400 + len(turns[i][0].token_ids) - 1  # the last token is sampled, not fed
        assert small.prefix_bytes <= 1 << 20
    a_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head size, bytes
    assert 0 < small.prefix_bytes == (left - small.counts.evicted_tokens) * a_token


def test_released_requests_are_not_sampled():
    engine = TransformersEngine(make_model(), (END,), num_slots=1)
    for i in range(3):
        engine.submit(TurnRequest(i, i, prompt(i, 5), 3, seed=i))
    engine.release(2)
    engine.release(0)
    seen = {turn.rollout for _ in range(20) for turn in engine.step()}
    assert seen == {1}


def test_a_rewritten_context_is_noticed():
    engine = TransformersEngine(make_model(), (END,), num_slots=1)
    context = prompt(0, 6)
    engine.submit(TurnRequest(0, 0, context, 1, seed=0))
    turn = next(turn for _ in range(5) for turn in engine.step())
    rewritten = np.concatenate([context, (turn.token_ids + 1) % END, [1, 2]])
    with pytest.raises(AssertionError, match="rewritten"):
        engine.submit(TurnRequest(0, 0, rewritten, 1, seed=0))


def test_models_without_full_attention_are_refused():
    config = Qwen3Config(
        **SIZES, head_dim=8, layer_types=["full_attention", "sliding_attention"], sliding_window=8
    )
    with pytest.raises(ValueError, match=r"full attention in every layer.*sliding_attention"):
        TransformersEngine(Qwen3ForCausalLM(config), (END,), num_slots=1)
