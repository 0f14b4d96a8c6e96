"""The verl plug-in inside verl 0.9, on a CPU: its loss against our own, its agent loop, its columns."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="needs the extra elpo[verl] in an environment of its own")

import verl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.trainer.ppo.v1.trainer_base import get_trainer_cls
from verl.utils import tensordict_utils
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from elpo.adapters.verl import agent_loop
from elpo.adapters.verl.agent_loop import ElpoAgentLoop, leaf_outputs
from elpo.adapters.verl.loss import elpo_loss
from elpo.adapters.verl.settings import check_agreement, read_recipe, verl_arguments
from elpo.adapters.verl.trainer import ElpoTrainer, token_columns
from elpo.algorithms.credit_rules import assign_credits
from elpo.config import Config
from elpo.interfaces import InfrastructureFault
from elpo.models.tiny import train_tokenizer
from elpo.recipes import load_config
from elpo.rollout.counts import RolloutCounts
from elpo.rollout.dialogue import Dialogue
from elpo.tasks.tool_turns import PYTHON_SCHEMA
from elpo.tree import RolloutTree
from elpo.types import ToolResult, ToolStatus
from tests.adapters import agreement
from tests.coins import Coins, CoinsOptions
from tests.training.small import random_tree, small_model

ROOT = Path(__file__).parents[2]
NUM_ROLLOUTS = 5  # of `random_tree`


def config_of(**clip: Any) -> Config:
    problems = {"problems_per_step": 2, "problems_per_minibatch": 2, "num_steps": 1}
    return Config.model_validate({"algorithm": {"num_rollouts": NUM_ROLLOUTS, "clip": clip}, "rl": problems})


def outputs_of(tree: RolloutTree, config: Config, size: int = NUM_ROLLOUTS) -> list[AgentLoopOutput]:
    return leaf_outputs(tree, RolloutCounts(rollouts=size), config, size, 7, [3, 2], 0.5)


def jagged(rows: list[Any]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


# trainer and loss


def test_verl_knows_the_plug_in() -> None:
    assert get_trainer_cls("elpo_sync") is ElpoTrainer
    assert get_policy_loss_fn("elpo")
    with pytest.raises(RuntimeError, match="needs trainer"):
        get_policy_loss_fn("elpo")(*[torch.zeros(1, 1)] * 3, torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "token-mean"])
@pytest.mark.parametrize("dual", [None, 1.02])
def test_loss_and_gradient_are_ours(aggregation: str, dual: float | None) -> None:
    """The outputs of the agent loop, through the trainer's columns and verl's `ppo_loss`."""
    config = config_of(low=0.05, high=0.08, elc=0.1, dual=dual)
    algorithm = config.algorithm.model_copy(
        update={"loss": config.algorithm.loss.model_copy(update={"aggregation": aggregation})}
    )
    model = small_model()
    trees = [random_tree(seed, model) for seed in (1, 2)]
    outputs = [output for tree in trees for output in outputs_of(tree, config)]
    agreement.moved(model)

    masks = [torch.tensor(output.response_mask) for output in outputs]
    columns = token_columns(masks, [output.extra_fields for output in outputs], [False] * len(outputs))
    logprobs = []
    for output in outputs:
        ids = torch.tensor(output.prompt_ids + output.response_ids)
        all_logprobs = torch.log_softmax(model(ids[None]).logits[0], -1)
        # as verl's engines: the entry at a place is about the token after it
        logprobs.append(all_logprobs.gather(-1, ids.roll(-1)[:, None])[:, 0])
    data = TensorDict(
        {
            "prompts": jagged([output.prompt_ids for output in outputs]),
            "responses": jagged([output.response_ids for output in outputs]),
            "response_mask": jagged(masks),
            "old_log_probs": jagged([output.response_logprobs for output in outputs]),
            **columns,
        },
        batch_size=len(outputs),
    )
    num_tokens = int(sum(mask.sum() for mask in masks))
    tensordict_utils.assign_non_tensor(
        data, dp_size=1, batch_num_tokens=num_tokens, global_batch_size=len(outputs)
    )
    actor = FSDPActorConfig(
        strategy="fsdp",
        ppo_mini_batch_size=len(outputs),
        ppo_micro_batch_size_per_gpu=len(outputs),
        use_dynamic_bsz=False,
        clip_ratio_low=0.05,
        clip_ratio_high=0.08,
        rollout_n=1,
        loss_agg_mode=aggregation,
        policy_loss=PolicyLossConfig(loss_mode="elpo"),
    )
    theirs, metrics = elpo_loss(
        actor,
        {"log_probs": torch.nested.as_nested_tensor(logprobs, layout=torch.jagged)},
        data,
        dual_clip=dual,
    )
    theirs.backward()
    assert {"actor/clip_fraction_low", "actor/elc_fraction", "actor/pg_loss"} <= metrics.keys()
    name = f"verl, {aggregation}, dual clip {dual}"
    agreement.check_agreement(name, theirs.item(), model, trees, algorithm, config.rl)


def test_verls_worker_takes_our_gradient(tmp_path: Path) -> None:
    """Through verl's FSDP2 engine: micro-batches, padding, its norm of the gradient."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "VERL_USE_EXTERNAL_PLUGINS": "none",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29600 + os.getpid() % 300),
        **dict.fromkeys(("RANK", "LOCAL_RANK"), "0"),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1"),
    }
    command = [sys.executable, "-m", "tests.adapters.verl_worker", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["verl"] == pytest.approx(found["ours"], rel=1e-4)


def test_columns_of_padding_are_nobodys() -> None:
    config = config_of()
    tree = random_tree(1, small_model())
    outputs = outputs_of(tree, config)
    masks = [torch.tensor(output.response_mask) for output in outputs]
    extra = [output.extra_fields for output in outputs]
    columns = token_columns([*masks, torch.zeros(2)], [*extra, extra[0]], [False] * len(masks) + [True])
    *rows, padding = columns["advantages"].unbind()
    (credit,) = assign_credits([tree], config.algorithm)
    for leaf, mask, row in zip(tree.leaves, masks, rows, strict=True):
        path = tree.path(leaf)
        sizes = [len(tree.nodes[node].step.token_ids) for node in path]
        expected = np.repeat(credit.advantages[path], sizes) * mask.numpy()
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-6)
    assert padding.tolist() == [0.0, 0.0]
    assert columns["clip_low"].unbind()[-1].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="a row has 2 response tokens and"):
        token_columns([torch.zeros(2)], [extra[0]], [False])


def test_lost_rollouts_become_rows_without_loss() -> None:
    tree = random_tree(1, small_model())
    tree.outcomes = dict(list(tree.outcomes.items())[:3])
    del tree.nodes[tree.leaves[-1] + 1 :]
    outputs = outputs_of(tree, config_of())
    assert [output.extra_fields["reward_extra_info"]["lost"] for output in outputs] == [0, 0, 0, 1, 1]
    assert [output.response_mask for output in outputs[3:]] == [[0], [0]]
    assert outputs[0].extra_fields["min_global_steps"] == 2
    assert outputs[0].extra_fields["max_global_steps"] == 3
    tree.outcomes, tree.nodes = {}, []
    with pytest.raises(InfrastructureFault, match="every rollout of problem p1 was lost"):
        outputs_of(tree, config_of())


def test_examples_say_the_same_as_their_recipes(tmp_path: Path) -> None:
    """Their arguments are keys of verl's, and our checks pass."""
    where = str(Path(verl.__file__).parent / "trainer" / "config")
    for name in ("paper-7b", "paper-4b", "one-gpu"):
        recipe = ROOT / "examples" / "verl" / f"{name}.yaml"
        script = recipe.with_suffix(".sh").read_text()
        extra = re.findall(
            r"(?<=[ \n])(?:actor_rollout_ref|trainer)[\w.]*=[\w.-]+", script.partition("exec ")[2]
        )
        assert len(extra) > 10
        arguments = verl_arguments(load_config(recipe), recipe, tmp_path)
        with initialize_config_dir(where, version_base=None):
            config = compose("ppo_trainer", [*arguments, *extra])
        ours = read_recipe(config)
        check_agreement(config, ours)
        assert config.data.train_batch_size == ours.rl.problems_per_step
        assert config.actor_rollout_ref.rollout.response_length == ours.rollout.max_tokens
        (entry,) = OmegaConf.load(config.actor_rollout_ref.rollout.agent.agent_loop_config_path)
        assert entry._target_ == f"{ElpoAgentLoop.__module__}.{ElpoAgentLoop.__name__}"
        config.actor_rollout_ref.rollout.n = 8
        with pytest.raises(ValueError, match=r"rollout\.n is 8; the recipe needs 16"):
            ElpoTrainer(config)


# the agent loop


class Client:
    """verl's client over a policy that puts coins into the bag, gold more often than not."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.dialogue = Dialogue(tokenizer, [PYTHON_SCHEMA])
        self.rng = np.random.default_rng(0)
        self.requests: list[tuple[str, list[int]]] = []

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> Any:
        self.requests.append((request_id, prompt_ids))
        await asyncio.sleep(0)
        done = self.tokenizer.decode(prompt_ids).count("<tool_response>")
        message: dict[str, Any] = {"role": "assistant", "content": "full"}
        if done < 2:
            coin = "gold" if self.rng.random() < 0.7 else "tin"
            function = {"name": "python", "arguments": {"code": f"bag.append({coin}); bag"}}
            message["tool_calls"] = [{"type": "function", "function": function}]
        ids = self.dialogue.assistant_ids(message).tolist()[: sampling_params["max_tokens"]]
        return SimpleNamespace(
            token_ids=ids,
            log_probs=[-0.5] * len(ids),
            stop_reason="completed",
            extra_fields={"global_steps": 4},
        )


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(Coins(CoinsOptions()).demonstrations(50, seed=0))


@pytest.fixture
def make_loop(tokenizer: Any, tmp_path: Path) -> Iterator[Any]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "task: {name: 'tests.coins:Coins'}\n"
        "rollout: {max_turns: 5, max_tokens: 400, max_turn_tokens: 60}\n"
        "algorithm: {num_rollouts: 6, strategy: {max_failures: 2}}\n"
    )
    rollout = SimpleNamespace(n=6, prompt_length=200, response_length=300, temperature=1.0)
    verl = {"elpo": {"recipe": str(recipe)}, "actor_rollout_ref": SimpleNamespace(rollout=rollout)}
    config = SimpleNamespace(**verl, get=verl.get)
    client = Client(tokenizer)

    def make() -> ElpoAgentLoop:
        loop = ElpoAgentLoop.__new__(ElpoAgentLoop)  # verl's own __init__ loads a model's processor
        loop.config, loop.rollout_config = config, rollout
        loop.server_manager, loop.tokenizer = client, tokenizer
        return loop

    make.client, make.rollout = client, rollout  # type: ignore[attr-defined]
    yield make
    for tool in agent_loop._world(load_config(recipe).model_dump_json()).tools.values():
        tool.close()
    agent_loop._world.cache_clear()


def row_of(number: int, split: str = "train") -> dict[str, Any]:
    problem = Coins(CoinsOptions()).problem(number)
    return {
        "raw_prompt": [dict(message) for message in problem.messages],
        "uid": f"uid-{split}-{number}",
        "global_steps": 4,
        "reward_model": {"ground_truth": problem.answer},
        "extra_info": {"id": problem.id, "split": split, "metadata": json.dumps(problem.metadata)},
    }


async def sessions(make: Any, rows: list[dict[str, Any]], num: int) -> list[list[AgentLoopOutput]]:
    """As verl's worker: all sessions of all prompts at once, a new loop for each."""

    async def prompt(row: dict[str, Any]) -> list[AgentLoopOutput]:
        runs = [make().run({"temperature": 1.0}, session_id=i, **row) for i in range(num)]
        return list(await asyncio.gather(*runs))

    return list(await asyncio.gather(*(prompt(row) for row in rows)))


def test_sessions_of_a_prompt_share_one_tree(make_loop: Any) -> None:
    found = asyncio.run(sessions(make_loop, [row_of(101), row_of(102)], 6))
    assert not ElpoAgentLoop.meetings
    for outputs in found:
        assert len(outputs) == 6
        for output in outputs:
            size = len(output.response_ids)
            assert len(output.response_mask) == len(output.response_logprobs) == size
            assert all(len(output.extra_fields["elpo"][name]) == size for name in ("advantages", "clip_low"))
            assert output.reward_score in (1.0, -1.0)
            assert output.extra_fields["max_global_steps"] == 4
        assert "metrics" in outputs[0].extra_fields["elpo"]
        assert outputs[0].extra_fields["elpo"]["metrics"]["rollouts/total"] == 6
    assert {uid for uid, _ in make_loop.client.requests} == {"uid-train-101", "uid-train-102"}
    searches = [o[0].extra_fields["elpo"]["metrics"]["localization/searches"] for o in found]
    assert sum(searches) > 0
    # branches continue token ids that were sampled before: each context is the beginning of a trajectory
    prompts = {tuple(outputs[0].prompt_ids) for outputs in found}
    texts = {tuple(output.prompt_ids + output.response_ids) for outputs in found for output in outputs}
    for _, context in make_loop.client.requests:
        known = tuple(context) in prompts or any(text[: len(context)] == tuple(context) for text in texts)
        assert known


def test_validation_rows_are_not_searched(make_loop: Any) -> None:
    (outputs,) = asyncio.run(sessions(make_loop, [row_of(401, "validation")], 2))
    assert len(outputs) == 2
    for output in outputs:
        assert output.extra_fields["elpo"]["metrics"]["rollouts/total"] == 1
        assert output.extra_fields["elpo"]["metrics"]["localization/searches"] == 0
    assert not ElpoAgentLoop.meetings


def test_faults_of_the_tool_are_nobodys_failure(make_loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts whose tool broke come back without loss; the rest are as many as the budget had left."""
    real = agent_loop.make_tools
    broken = {"calls": 0}

    def make_tools(task: Any, config: Config) -> Any:
        tools = real(task, config)
        tool = tools["python"]
        opened = tool.open

        def open_(problem: Any) -> Any:
            session = opened(problem)
            if broken["calls"] < 2:
                broken["calls"] += 1
                fault = ToolResult(ToolStatus.INFRASTRUCTURE_FAULT, "no worker")
                return SimpleNamespace(call=lambda call: (fault, session), close=session.close)
            return session

        tool.open = open_
        return tools

    monkeypatch.setattr(agent_loop, "make_tools", make_tools)
    (outputs,) = asyncio.run(sessions(make_loop, [row_of(103)], 6))
    lost = [output for output in outputs if output.extra_fields["reward_extra_info"]["lost"]]
    assert len(outputs) == 6
    assert len(lost) == 2
    assert all(sum(output.response_mask) == 0 for output in lost)
    kept = [output for output in outputs if output not in lost]
    assert all(sum(output.response_mask) > 0 for output in kept)


def test_rows_that_cannot_be_used_are_named(make_loop: Any) -> None:
    row = row_of(104)
    del row["reward_model"]
    with pytest.raises(ValueError, match=r"reward_model\.ground_truth"):
        asyncio.run(make_loop().run({}, session_id=0, **row))
    make_loop.rollout.prompt_length = 3
    with pytest.raises(ValueError, match=r"rollout\.prompt_length is 3"):
        asyncio.run(make_loop().run({}, session_id=0, **row_of(105, "validation")))
