"""Packed trees against their trajectories one by one, for several architectures; what cannot be packed."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from elpo.algorithm_config import AlgorithmConfig, LossConfig
from elpo.algorithms.credit import assign_credit
from elpo.algorithms.credit_rules import assign_credits
from elpo.config import RLConfig
from elpo.packing import TreeLayout, tree_layout
from elpo.training import tree_attention
from elpo.training.policy_update import update_policy
from elpo.training.sft import Conversation, sft_update
from elpo.training.tree_attention import (
    BLOCK,
    block_attention,
    block_mask,
    hidden_states,
    packing_obstacle,
    run_attention,
)
from elpo.tree import RolloutTree
from tests.training.small import VOCAB, random_tree, record_gradients, small_learner, small_model
from tests.trees import Figure4

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
}
LOSSES = [
    LossConfig(aggregation=aggregation, shared_tokens=shared)
    for aggregation, shared in itertools.product(("seq-mean-token-mean", "token-mean"), ("duplicate", "once"))
]


def random_layout(seed: int, num: int = 14) -> TreeLayout:
    rng = np.random.default_rng(seed)
    parents = [-1]
    for i in range(1, num):
        ancestors, at = [-1], i - 1
        while at >= 0:
            ancestors.append(at)
            at = parents[at]
        parents.append(int(rng.choice(ancestors)))
    return tree_layout(parents, rng.integers(1, 6, num).tolist())


def gradients_of(model: Any, output: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(output, list(model.base_model.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float64, 1e-7), (torch.float32, 1e-5)],  # the models' norms are in float32 even in float64
)
def test_hidden_states_and_gradients_are_those_of_the_trajectories(
    name: str, dtype: torch.dtype, limit: float
) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).train()
    assert packing_obstacle(model) is None
    for seed in range(3):
        layout = random_layout(seed)
        num = len(layout.positions)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(VOCAB, (num,), generator=generator)
        direction = torch.randn(num, 16, dtype=dtype, generator=generator)
        packed = hidden_states(model.base_model, ids, layout)
        plain = torch.zeros_like(packed)
        for run, context in zip(
            torch.split(torch.arange(num), list(layout.run_lengths)),
            torch.split(layout.contexts, list(layout.context_lengths)),
            strict=True,
        ):
            alone = model.base_model(input_ids=ids[context][None], use_cache=False).last_hidden_state[0]
            plain = plain.index_copy(0, run, alone[-len(run) :])
        assert float((packed - plain).detach().norm() / plain.detach().norm()) < limit
        mine, theirs = (gradients_of(model, (x * direction).tanh().sum()) for x in (packed, plain))
        assert float((mine - theirs).norm() / theirs.norm()) < limit
        if seed == 0:  # the gradient of a branch's end reaches the prompt and no other branch
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
            hook = model.get_input_embeddings().register_forward_hook(lambda *_, e=embedded: e[None])
            last = hidden_states(model.base_model, ids, layout)[-1].square().sum()
            hook.remove()
            (reached,) = torch.autograd.grad(last, embedded)
            path = layout.contexts[-layout.context_lengths[-1] :].tolist()
            assert torch.nonzero(reached.abs().sum(-1))[:, 0].tolist() == path


def updates(
    packing: Any, trees: list[RolloutTree], loss: LossConfig, max_tokens: int = 10_000, lora: bool = False
) -> tuple[dict[str, float], torch.Tensor]:
    model = small_model()
    if lora:
        peft = pytest.importorskip("peft")
        torch.manual_seed(1)
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
        for parameter in model.parameters():  # B starts at zero, and A's gradient with it
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3)
    learner = small_learner(model, packing)
    assert learner.packed == (packing == "tree")
    gradients = record_gradients(learner)
    algorithm = AlgorithmConfig(loss=loss)
    rl = RLConfig(
        problems_per_step=len(trees), problems_per_minibatch=len(trees), microbatch_tokens=max_tokens
    )
    metrics = update_policy(learner, trees, assign_credits(trees, algorithm), algorithm, rl)
    return metrics, torch.cat([gradient.flatten() for gradient in gradients[0].values()])


def figure4() -> RolloutTree:
    """The paper's tree, with log-probabilities near those of a nearly uniform policy."""
    tree = Figure4().fill_and_search()
    rng = np.random.default_rng(0)
    for node in tree.nodes:
        sampled = node.step.sampled
        node.step.logprobs[sampled] = -np.log(VOCAB) + rng.normal(0, 0.5, int(sampled.sum()))
    return tree


TREES = [*(random_tree(seed, small_model(), off_policy=0.6) for seed in range(3)), figure4()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.aggregation}-{loss.shared_tokens}")
def test_the_update_is_that_of_unrolled_rows(loss: LossConfig) -> None:
    metrics, expected = updates("rows", TREES, loss)
    assert min(metrics[f"clip/{name}_share"] for name in ("low", "high", "elc")) > 0
    assert metrics.pop("tokens/forwarded_per_unique") > 1.3
    for max_tokens in (10_000, 50, 1):  # trees are larger than 50 tokens
        packed, gradients = updates("tree", TREES, loss, max_tokens)
        ratio = packed.pop("tokens/forwarded_per_unique")
        assert ratio == 1 if max_tokens == 10_000 else ratio > 1
        assert float((gradients - expected).norm() / expected.norm()) < 1e-5
        assert packed == pytest.approx(metrics, rel=1e-5, abs=1e-7)


def test_one_large_micro_batch_is_eight_small_ones() -> None:
    trees = [random_tree(seed, small_model(), off_policy=0.6) for seed in range(8)]
    whole, expected = updates("tree", trees, LossConfig())
    parts, gradients = updates("tree", trees, LossConfig(), max_tokens=120)
    assert float((gradients - expected).norm() / expected.norm()) < 1e-5
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["tokens/forwarded_per_unique"] == 1


def test_lora_gets_the_gradient_of_unrolled_rows() -> None:
    _, expected = updates("rows", TREES, LossConfig(), lora=True)
    _, gradients = updates("tree", TREES, LossConfig(), lora=True)
    assert 0 < len(expected) < 1000
    assert float((gradients - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("max_tokens", [20, 10_000])
def test_supervised_updates_are_those_of_padded_rows(max_tokens: int) -> None:
    rng = np.random.default_rng(0)
    batch = [
        Conversation(rng.integers(0, VOCAB, length), np.arange(length) % 3 > 0) for length in (5, 12, 9, 3)
    ]
    found = {}
    for packing in ("rows", "tree"):
        learner = small_learner(small_model(), packing)  # type: ignore[arg-type]
        gradients = record_gradients(learner)
        metrics = sft_update(learner, batch, max_tokens)
        found[packing] = metrics, torch.cat([gradient.flatten() for gradient in gradients[0].values()])
    (rows, expected), (packed, mine) = found["rows"], found["tree"]
    assert packed.pop("tokens/forwarded_per_unique") == 1 <= rows.pop("tokens/forwarded_per_unique")
    assert packed == pytest.approx(rows, rel=1e-5)
    assert float((mine - expected).norm() / expected.norm()) < 1e-5


def test_attention_and_its_gradient_are_those_of_a_dense_tree_mask() -> None:
    layout = random_layout(4)
    index = torch.arange(len(layout.positions))
    sees = (index[None] <= index[:, None]) & (index[:, None] < layout.subtree_end[None])
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, len(index), 8) for heads in (4, 2, 2)]
    parts = [
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes
    ]
    key, value = (x.repeat_interleave(2, 1) for x in parts[1:])
    scores = (parts[0] @ key.transpose(2, 3) / 8**0.5).masked_fill(~sees, float("-inf"))
    dense = (scores.softmax(-1) @ value).transpose(1, 2)
    runs = run_attention(parts[0], parts[1], parts[2], layout)
    torch.testing.assert_close(runs, dense, rtol=1e-12, atol=1e-12)
    direction = torch.randn(runs.shape, dtype=torch.float64, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad(runs, parts, direction), torch.autograd.grad(dense, parts, direction), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_flex_attention_and_its_gradient_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as on CUDA; the arithmetic is torch's own, its kernels need the device.

    14 heads over 2, as some Qwen models have. Rows of all lengths are served by a few programs: torch
    compiles for the first one and, once another is seen, for all.
    """
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention import flex_attention as torchs

    monkeypatch.setattr(
        torchs, "_validate_device", lambda *_: None, raising=False
    )  # no backward pass on CPUs
    torch._dynamo.reset()
    programs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(torchs.flex_attention, backend=programs, fullgraph=True)
    monkeypatch.setattr(tree_attention, "_compiled", lambda: compiled)
    lengths, needed = [], []
    for num in (10, 60, 130, 40):
        layout = random_layout(num, num)
        lengths.append(length := len(layout.positions))
        generator = torch.Generator().manual_seed(num)
        parts = [
            torch.randn(1, length, heads, 16, generator=generator).transpose(1, 2).requires_grad_()
            for heads in (14, 2, 2)
        ]
        flex = block_attention(*parts, layout, scaling=0.3)
        runs = run_attention(*parts, layout, scaling=0.3)
        torch.testing.assert_close(flex, runs, rtol=1e-5, atol=1e-5)
        direction = torch.randn(runs.shape, generator=generator)
        for mine, theirs in zip(
            torch.autograd.grad(flex, parts, direction),
            torch.autograd.grad(runs, parts, direction),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(block_attention(*parts, layout, scaling=0.3), flex.detach())
        needed.append(programs.frame_count)
    assert max(lengths) > 2 * BLOCK > BLOCK > min(lengths)
    assert needed[-1] == needed[2] <= 6


@pytest.mark.slow  # compiles C++
@torch.no_grad()
def test_compiled_for_this_machine_flex_attention_sees_what_the_runs_see() -> None:
    """Forward, for one length: torch 2.13 writes C++ that does not compile for rows of all lengths."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    torch._dynamo.reset()
    tree_attention._compiled.cache_clear()
    layout = random_layout(1, 200)
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(1, len(layout.positions), heads, 32, generator=generator).transpose(1, 2)
        for heads in (14, 2, 2)
    ]
    with mock.patch.object(torch._dynamo, "maybe_mark_dynamic"):
        flex = block_attention(*parts, layout)
    torch.testing.assert_close(flex, run_attention(*parts, layout), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_listed_exactly(seed: int) -> None:
    layout = random_layout(seed, num=40)
    sizes = [40] * 40  # long segments, so that there are whole blocks
    layout = tree_layout([-1, *range(19), 5, *range(20, 39)], sizes)
    num = len(layout.positions)
    index = torch.arange(num)
    sees = (index[None] <= index[:, None]) & (index[:, None] < layout.subtree_end[None])
    num_blocks = -(-num // BLOCK)
    padded = torch.zeros(num_blocks * BLOCK, num_blocks * BLOCK, dtype=torch.bool)
    padded[:num, :num] = sees
    blocks = padded.view(num_blocks, BLOCK, num_blocks, BLOCK).transpose(1, 2).flatten(2)
    mask = block_mask(layout)

    def listed(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(num_blocks, num_blocks, dtype=torch.bool)
        for row in range(num_blocks):
            found[row, indices[0, 0, row, : int(counts[0, 0, row])].long()] = True
        return found

    partial = listed(mask.kv_num_blocks, mask.kv_indices)
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert whole.sum() > 3 and partial.sum() > 3
    assert torch.equal(partial | whole, blocks.any(-1)) and not (partial & whole).any()
    rows = num // BLOCK  # the last block of queries may be cut
    assert torch.equal(whole[:rows], blocks.all(-1)[:rows])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)), "sliding"),
        (
            lambda: Qwen3ForCausalLM(
                Qwen3Config(
                    **SIZES, head_dim=8, use_sliding_window=True, sliding_window=8, max_window_layers=1
                )
            ),
            "sliding",
        ),
        (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, attn_implementation="eager")), "eager"),
    ],
)
def test_other_attention_falls_back_to_rows_and_says_why(model: Any, reason: str) -> None:
    learner = small_learner(model())
    assert not learner.packed and reason in str(learner.obstacle)
    with pytest.raises(ValueError, match=f"model.packing is tree, but .*{reason}.*; use auto or rows"):
        small_learner(model(), "tree")
    tree = random_tree(0, small_model())
    algorithm = AlgorithmConfig()
    rl = RLConfig(problems_per_step=1, problems_per_minibatch=1)
    metrics = update_policy(learner, [tree], [assign_credit(tree)], algorithm, rl)
    assert metrics["tokens/forwarded_per_unique"] > 1


def test_a_model_that_ignores_the_tree_is_found_out() -> None:
    model = small_model()
    plain = model.base_model.forward

    def forward(*args: Any, tree_layout: TreeLayout | None = None, **kwargs: Any) -> Any:
        kwargs.pop("attention_mask", None)
        return plain(*args, **kwargs)

    model.base_model.forward = forward
    assert "does not follow the tree" in str(packing_obstacle(model))
    assert model.config._attn_implementation == "sdpa"


def test_without_a_layout_the_model_is_unchanged() -> None:
    ids = torch.arange(24).view(2, 12) % VOCAB
    model = small_model().eval()
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, :4] = 0
    before = [model(ids).logits, model(ids, attention_mask=mask).logits]
    assert packing_obstacle(model) is None
    after = [model(ids).logits, model(ids, attention_mask=mask).logits]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert "elpo_tree" not in model.config.to_json_string()
