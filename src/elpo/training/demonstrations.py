"""What a cold start imitates: conversations of a file or of the task, as the policy's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elpo.config import Config
from elpo.rollout.dialogue import Dialogue
from elpo.tasks.conversations import read_conversations
from elpo.tasks.rows import BadRow

if TYPE_CHECKING:
    from elpo.training.sft import Conversation

MAX_BAD_ROWS_LISTED = 10


def demonstrations(
    task: Any, config: Config, num: int, seed: int
) -> tuple[list[dict[str, Any]], list[BadRow]]:
    """Up to `num` conversations to imitate, of `sft.path` or the task, and the rows left out of the former.

    Raises:
        ValueError: there are none.
    """
    if config.sft.path is not None:
        return read_conversations(config.sft.path, task.tool_names, config.sft.rename_tools, num)
    if not hasattr(task, "demonstrations"):
        raise ValueError(
            f"task {task.name!r} has no demonstrations to train a tokenizer on; set model.path, or sft.path"
        )
    return task.demonstrations(num, seed=seed), []


def load_conversations(task: Any, config: Config, dialogue: Dialogue) -> tuple[list[Conversation], list[str]]:
    """The cold start's conversations as tokens, and what there is to say about those left out.

    Raises:
        ValueError: none can be used.
    """
    from elpo.training.sft import conversation_tokens

    limit = config.rollout.max_tokens
    found, bad = demonstrations(task, config, config.sft.num_demonstrations, config.run.seed)
    tokens = [conversation_tokens(dialogue, row["messages"]) for row in found]
    fitting = [conversation for conversation in tokens if len(conversation.token_ids) <= limit]
    if not fitting:
        raise ValueError(f"no conversation has at most rollout.max_tokens={limit} tokens; raise the limit")
    notes = [f"left out: {row.place}: {row.reason}" for row in bad[:MAX_BAD_ROWS_LISTED]]
    if len(bad) > MAX_BAD_ROWS_LISTED:
        notes.append(f"{len(bad)} rows were left out in all")
    if too_long := len(tokens) - len(fitting):
        notes.append(f"{too_long} conversations have more than rollout.max_tokens={limit} and are left out")
    return fitting, notes
