"""TRL's trainer around our trees: its loss and gradient against our own, and what it must refuse."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

pytest.importorskip("trl", reason="needs the extra elpo[trl]")

from trl import GRPOTrainer

from elpo.adapters.trl import ElpoTrainer, check_arguments, grow_rows, grpo_arguments, tree_rows
from elpo.algorithms.credit_rules import assign_credits
from elpo.config import Config
from elpo.interfaces import TurnRequest
from elpo.rollout.counts import RolloutCounts
from elpo.rollout.episode import Limits
from elpo.rollout.scheduler import Scheduler
from elpo.training.assembly import assemble
from elpo.tree import RolloutTree
from elpo.types import Problem
from tests.adapters.agreement import check_agreement, moved
from tests.engines import fake_vllm
from tests.training.small import VOCAB, random_tree, small_model

NUM_ROLLOUTS = 5  # of `random_tree`


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    words = {f"w{i}": i for i in range(VOCAB)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token="w0", eos_token="w1"
    )


def config_of(**settings: Any) -> Config:
    problems = {"problems_per_step": 2, "problems_per_minibatch": 2, "num_steps": 1, "num_problems": 2}
    given = {"algorithm": {"num_rollouts": NUM_ROLLOUTS}, "rl": problems, "run": {"device": "cpu"}}
    return Config.model_validate(given | settings)


def trainer_on(
    trees: list[RolloutTree], model: Any, tokenizer: Any, config: Config, folder: Path, **arguments: Any
) -> ElpoTrainer:
    """A trainer whose scheduler has grown these trees."""

    def grow(problems: list[Problem], *_: Any, **__: Any) -> tuple[list[RolloutTree], RolloutCounts]:
        return [by_id[problem.id] for problem in problems], RolloutCounts(rollouts=len(problems))

    by_id = {tree.problem.id: tree for tree in trees}
    assembly: Any = SimpleNamespace(
        config=config,
        model=model,
        tokenizer=tokenizer,
        task=SimpleNamespace(problems=lambda split, num: [tree.problem for tree in trees]),
        scheduler=SimpleNamespace(grow=grow),
        dialogue=SimpleNamespace(end_id=tokenizer.eos_token_id),
    )
    return ElpoTrainer(assembly, grpo_arguments(config, str(folder), **arguments))


def cut(tree: RolloutTree, num_leaves: int) -> RolloutTree:
    """The tree as it is when all later rollouts are lost."""
    tree.outcomes = dict(list(tree.outcomes.items())[:num_leaves])
    del tree.nodes[tree.leaves[-1] + 1 :]
    return tree


@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "token-mean"])
@pytest.mark.parametrize("dual", [None, 1.09])
def test_loss_and_gradient_are_ours(
    aggregation: str, dual: float | None, tokenizer: Any, tmp_path: Path
) -> None:
    config = config_of(
        algorithm={
            "num_rollouts": NUM_ROLLOUTS,
            "loss": {"aggregation": aggregation},
            "clip": {"low": 0.05, "high": 0.08, "elc": 0.1, "dual": dual},
        }
    )
    model = small_model()
    trees = [random_tree(seed, model) for seed in (1, 2)]

    # TRL's way: rows of both trees, shuffled, in two micro-batches, old log-probabilities its own
    trainer = trainer_on(trees, model, tokenizer, config, tmp_path, num_iterations=2)
    trainer.current_gradient_accumulation_steps = 2
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = 0.0
    for _ in range(2):
        inputs = trainer._prepare_inputs(batch)
        if trainer._step == 0:
            moved(model)
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        theirs += loss.item()
        trainer._step += 1
    assert sum(trainer._metrics["train"]["clip_ratio/low_mean"]) > 0
    check_agreement(
        f"TRL, {aggregation}, dual clip {dual}", theirs, model, trees, config.algorithm, config.rl
    )


def test_lost_rollouts_become_rows_without_loss() -> None:
    tree = random_tree(1, small_model())
    whole = list(tree_rows(tree, Config(), NUM_ROLLOUTS, filler=0))
    rows = list(tree_rows(cut(tree, 3), Config(), NUM_ROLLOUTS, filler=7))
    assert len(rows) == NUM_ROLLOUTS
    assert [row["completion_ids"] for row in rows[:3]] == [row["completion_ids"] for row in whole[:3]]
    for row in rows[3:]:
        assert row["completion_ids"] == [7]
        assert row["env_mask"] == [0]
        assert row["elpo_reward"] is None
        assert row["prompt_ids"] == tree.prompt_ids.tolist()


def test_a_step_with_lost_rollouts_trains_on_the_rest(tokenizer: Any, tmp_path: Path) -> None:
    model = small_model()
    trees = [random_tree(seed, model) for seed in (1, 2)]
    cut(trees[0], 2)
    before = model.lm_head.weight.clone()
    trainer = trainer_on(trees, model, tokenizer, config_of(), tmp_path, learning_rate=1e-2)
    trainer.train()
    assert not torch.equal(before, model.lm_head.weight)
    assert torch.isfinite(model.lm_head.weight).all()
    rewards = [outcome.reward for tree in trees for outcome in tree.outcomes.values()]
    assert trainer.state.log_history[0]["reward"] == pytest.approx(np.mean(rewards))


def test_rows_carry_their_own_tokens(tokenizer: Any, tmp_path: Path) -> None:
    """After TRL has shuffled and split them, every sampled token still has its node's numbers."""
    model = small_model()
    trees = [random_tree(seed, model) for seed in (1, 2)]
    config = config_of()
    trainer = trainer_on(trees, model, tokenizer, config, tmp_path)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    found = set()
    for _ in range(2):
        inputs = trainer._prepare_inputs(batch)
        for i, mask in enumerate(inputs["completion_mask"].bool()):
            on = mask & inputs["tool_mask"][i].bool()
            found.add(
                (
                    tuple(inputs["completion_ids"][i][mask].tolist()),
                    *(
                        tuple(inputs[name][i][on].tolist())
                        for name in ("advantages", "clip_low", "clip_high")
                    ),
                )
            )
        trainer._step += 1
    expected = set()
    for tree in trees:
        (credit,) = assign_credits([tree], config.algorithm)
        for leaf in tree.leaves:
            path = tree.path(leaf)
            sizes = [int(tree.nodes[node].step.sampled.sum()) for node in path]
            expected.add(
                (
                    tuple(tree.context(leaf)[len(tree.prompt_ids) :].tolist()),
                    *(
                        tuple(np.repeat(values[path], sizes).astype(np.float32).tolist())
                        for values in (credit.advantages, credit.clip_low, credit.clip_high)
                    ),
                )
            )
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_generations": 10}, "num_generations is 10"),
        ({"loss_type": "cispo"}, "loss_type is 'cispo'"),
        ({"loss_type": "dapo"}, "needs 'grpo'"),
        ({"importance_sampling_level": "sequence"}, "needs 'token'"),
        ({"delta": 3.0}, "delta is 3.0"),
        ({"temperature": 0.5}, "temperature is 0.5"),
    ],
)
def test_contradicting_arguments_are_refused(
    arguments: dict[str, Any], message: str, tokenizer: Any, tmp_path: Path
) -> None:
    trees = [random_tree(1, small_model())]
    with pytest.raises(ValueError, match=message):
        trainer_on(trees, small_model(), tokenizer, config_of(), tmp_path, **arguments)


def test_vllm_only_without_sleep_and_with_token_correction() -> None:
    config = config_of()
    arguments = grpo_arguments(config, "unused")
    good = {"use_vllm": True, "vllm_mode": "colocate", "vllm_importance_sampling_mode": "token_truncate"}
    for bad in (
        {"vllm_mode": "server"},
        {"vllm_enable_sleep_mode": True},
        {"vllm_importance_sampling_mode": "sequence_mask"},
        {"vllm_tensor_parallel_size": 2},
    ):
        for name, value in (good | bad).items():
            setattr(arguments, name, value)
        with pytest.raises(ValueError, match=next(iter(bad))):
            check_arguments(arguments, config)
        for name in bad:
            setattr(arguments, name, good.get(name, getattr(grpo_arguments(config, "unused"), name)))
    check_arguments(arguments, config)


def test_a_tree_is_never_split_between_processes(tokenizer: Any, tmp_path: Path) -> None:
    config = config_of()
    arguments = grpo_arguments(config, str(tmp_path))
    arguments.per_device_train_batch_size = 3
    with pytest.raises(ValueError, match=r"is 6, which is no multiple of num_generations 5"):
        check_arguments(arguments, config)
    trees = [random_tree(1, small_model())]
    trainer = trainer_on(trees, small_model(), tokenizer, config, tmp_path)
    with pytest.raises(RuntimeError, match="split the 5 rows"):
        grow_rows(["p1"] * 4 + ["p2"], trainer)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"loss": {"shared_tokens": "once"}}, "shared_tokens is 'once'; through TRL it can be 'duplicate'"),
        ({"loss": {"surrogate": "gspo"}}, "surrogate is 'gspo'; through TRL it can be 'ppo'"),
        ({"credit": {"whiten": "tokens"}}, "whiten is 'tokens'"),
        ({"prompts": {"name": "open"}}, r"prompts\.name is 'open'"),
        ({"clip": {"dual": 1.3}}, r"clip\.dual is 1\.3; .* above 1 \+ clip\.high = 1\.315"),
        ({"max_calls": [1, 2]}, r"max_calls is \(1, 2\)"),
        ({"loss": {"aggregation": "seq-mean-token-sum-norm"}}, "aggregation is 'seq-mean-token-sum-norm'"),
    ],
)
def test_algorithms_that_rows_do_not_describe(algorithm: dict[str, Any], message: str) -> None:
    config = config_of(algorithm={"num_rollouts": NUM_ROLLOUTS} | algorithm)
    with pytest.raises(ValueError, match=message):
        check_arguments(grpo_arguments(config, "unused"), config)


def test_a_real_run(tmp_path: Path) -> None:
    """Model, tools and search of an assembled run; TRL trains and evaluates."""
    config = Config.model_validate(
        {
            "run": {"device": "cpu"},
            "model": {"tiny": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}},
            "rollout": {"num_slots": 16, "max_tokens": 320, "max_turn_tokens": 6},
            "algorithm": {"num_rollouts": 4},
            "rl": {"num_steps": 2, "problems_per_step": 2, "problems_per_minibatch": 1, "num_problems": 4},
            "evaluation": {"num_problems": 2},
        }
    )
    assembly = assemble(config, torch.device("cpu"))
    try:
        arguments = grpo_arguments(config, str(tmp_path), eval_strategy="steps", eval_steps=4)
        arguments.per_device_eval_batch_size = 4
        trainer = ElpoTrainer(assembly, arguments)
        trainer.train()
    finally:
        assembly.close()
    log = trainer.state.log_history
    assert [line["rollouts/total"] for line in log if "rollouts/total" in line] == [8.0, 8.0]
    evaluated = [line for line in log if "eval_reward" in line]
    assert evaluated
    assert all(line["eval_localization/searches"] == 0 for line in evaluated)


def test_vllm_of_trl_samples_the_trees(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL loads vLLM and syncs it; our engine samples from that very one."""
    fake_vllm.install(monkeypatch)
    inner = fake_vllm.LLMEngine(small_model(), logprobs_mode="processed_logprobs")
    built = GRPOTrainer.__init__

    def with_llm(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["args"].use_vllm = False  # the real one cannot be loaded here
        built(self, *args, **kwargs)
        kwargs["args"].use_vllm = True
        self.vllm_generation = SimpleNamespace(llm=SimpleNamespace(llm_engine=inner))

    monkeypatch.setattr(GRPOTrainer, "__init__", with_llm)
    config = config_of()
    dialogue: Any = SimpleNamespace(end_id=tokenizer.eos_token_id)
    scheduler = Scheduler(SimpleNamespace(), None, {}, dialogue, Limits(2, 100, 10))  # type: ignore[arg-type]
    problems = [Problem("a", (), "")]
    assembly: Any = SimpleNamespace(
        config=config,
        model=small_model(),
        tokenizer=tokenizer,
        task=SimpleNamespace(problems=lambda split, num: problems),
        scheduler=scheduler,
        dialogue=dialogue,
    )
    arguments = grpo_arguments(config, str(tmp_path))
    arguments.use_vllm, arguments.vllm_mode = True, "colocate"
    trainer = ElpoTrainer(assembly, arguments)
    assert not trainer.scheduler.deterministic
    trainer.scheduler.engine.submit(TurnRequest(0, 0, np.arange(5), 3, seed=1))
    turns = [turn for _ in range(3) for turn in trainer.scheduler.engine.step()]
    assert len(turns) == 1
