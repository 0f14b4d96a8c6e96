"""Attention over packed trees for any transformers model that attends through its `AttentionInterface`.

`elpo_tree` is an attention implementation by name. A forward pass that brings a `TreeLayout` is computed
over trees, any other by SDPA, so that the engine goes on sampling from the same model as before.

- On a CPU each run of tokens attends to its own context by a call of SDPA of its own. All else (projections,
  MLP, norms, vocabulary) sees one row without padding. A dense tree mask would be exact too, but computes the
  attention between all branches only to drop it. Times: `benchmarks/packing.md`.
- On CUDA FlexAttention with a block mask, compiled once for rows of all lengths. Heads smaller than its
  kernels take are attended as on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from elpo.packing import TreeLayout, tree_layout

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

NAME = "elpo_tree"
BLOCK = 128
MIN_FLEX_HEAD = 16
"""The smallest head FlexAttention's kernels take."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative difference of hidden states between packed and unrolled; 0.05 in lower precision."""


def packing_obstacle(model: Any) -> str | None:
    """Why the trees of this causal LM cannot be packed; None if they can, and then it is prepared for it.

    What the configuration does not say is found by trying: the hidden states of a small tree must be those
    of its trajectories.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"the model has layers of {sorted(kinds - {'full_attention'})}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"the model has a sliding window of {config.sliding_window} tokens"
    before = config._attn_implementation
    if before not in ("sdpa", NAME):
        return f"the model's attention is {before!r}; packing needs 'sdpa'"
    if not model._can_set_attn_implementation():
        return "the model does not attend through transformers' AttentionInterface"
    _register()
    model.set_attn_implementation(NAME)
    try:
        difference = _difference(model)
    except Exception as error:  # models and the compilers of kernels each raise their own
        model.set_attn_implementation(before)
        return f"the model failed on a packed tree: {error}"
    if not difference <= TOLERANCE.get(model.dtype, 0.05):
        model.set_attn_implementation(before)
        return f"the model does not follow the tree: its hidden states differ by {difference:.1e}"
    return None


def hidden_states(base_model: nn.Module, token_ids: Tensor, layout: TreeLayout) -> Tensor:
    """Last hidden states [N, d] of packed `token_ids` int64 [N]."""
    output = base_model(
        input_ids=token_ids[None],
        position_ids=layout.positions[None],
        attention_mask=token_ids.new_ones(1, 1, 1, 1),  # 4D is taken as it is: no N x N mask is built
        use_cache=False,
        tree_layout=layout,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree_layout: TreeLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function as transformers wants it: [1, H, N, D] to [1, N, H, D].

    Raises:
        ValueError: the model asks for something beside plain attention.
    """
    if tree_layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return plain
    unknown = [name for name in ("softcap", "s_aux", "position_bias", "sliding_window") if kwargs.get(name)]
    if unknown:
        raise ValueError(f"attention over trees has no {unknown}")
    if query.dtype != value.dtype:  # under autocast: rotation and norms of queries and keys are in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
    if query.device.type == "cuda" and query.shape[-1] >= MIN_FLEX_HEAD and not dropout:
        return block_attention(query, key, value, tree_layout, scaling), None
    return run_attention(query, key, value, tree_layout, dropout, scaling), None


def run_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """Each run of tokens against its context: [1, H, N, D] to [1, N, H, D]. Key heads may be fewer than H."""
    groups = query.shape[1] // key.shape[1]
    # one gather for all runs, whose backward pass is one sum into the packed row
    keys, values = (
        torch.split(
            x[0].transpose(0, 1)[layout.contexts].repeat_interleave(groups, 1), list(layout.context_lengths)
        )
        for x in (key, value)
    )
    attended = [
        nn.functional.scaled_dot_product_attention(
            q,
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=dropout,
            scale=scaling,
        )
        for q, k, v, mask in zip(
            torch.split(query, list(layout.run_lengths), 2), keys, values, layout.run_masks, strict=True
        )
    ]
    return torch.cat(attended, 2).transpose(1, 2)


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scaling: float | None = None
) -> Tensor:
    """FlexAttention over the blocks that hold anything to see: [1, H, N, D] to [1, N, H, D].

    Deviation from transformers' `flex_attention_forward`: keys are not repeated where H is no power of two,
    and more programs than torch allows are an error instead of all N x N scores, uncompiled.
    """
    for x in (query, key, value):
        torch._dynamo.maybe_mark_dynamic(x, 2)
    attended: Tensor = _compiled()(
        query,
        key,
        value,
        block_mask=block_mask(layout),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},  # short rows have no program of their own
    )
    return attended.transpose(1, 2)


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True)
    return compiled


def block_mask(layout: TreeLayout) -> BlockMask:
    """The layout for FlexAttention: which blocks of keys a block of queries sees, in part or as a whole.

    Made from the blocks' own bounds, without an N x N mask; kept, since all layers need the same.
    """
    kept: BlockMask | None = layout.__dict__.get("_block_mask")
    if kept is None:
        kept = layout.__dict__["_block_mask"] = _block_mask(layout.subtree_end)
    return kept


def _block_mask(ends: Tensor) -> BlockMask:
    from torch.nn.attention.flex_attention import BlockMask

    num = len(ends)
    num_blocks = max(2, -(-num // BLOCK))  # torch compiles a size of 1 apart
    padded = nn.functional.pad(ends, (0, num_blocks * BLOCK - num)).view(num_blocks, BLOCK)
    blocks = torch.arange(num_blocks, device=ends.device)
    queries, keys = blocks[:, None], blocks[None]
    seen = (queries == keys) | ((queries > keys) & (padded.amax(1)[None] > queries * BLOCK))
    whole = (queries > keys) & (padded.amin(1)[None] >= (queries + 1) * BLOCK)

    def listed(which: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.argsort(which.int(), dim=-1, descending=True, stable=True)
        return which.sum(-1).int()[None, None], order.int()[None, None].contiguous()

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    return BlockMask.from_kv_blocks(
        *listed(seen & ~whole), *listed(whole), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(num, num)
    )


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@torch.no_grad()
def _difference(model: Any) -> float:
    """How far hidden states of a packed tree are from those of its trajectories, relative to their size."""
    layout = tree_layout([-1, 0, 1, 1, 0, -1], [3, 2, 3, 1, 4, 5]).to(model.device)
    token_ids = (torch.arange(len(layout.positions), device=model.device) * 7 + 1) % model.config.vocab_size
    training = model.training
    model.eval()
    try:
        packed = hidden_states(model.base_model, token_ids, layout).double()
        plain = torch.zeros_like(packed)
        for context in torch.split(layout.contexts, list(layout.context_lengths)):
            rows = model.base_model(input_ids=token_ids[context][None], use_cache=False).last_hidden_state
            plain[context] = rows[0].double()
    finally:
        model.train(training)
    return float((packed - plain).norm() / plain.norm())
