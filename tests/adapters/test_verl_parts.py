"""The parts of the verl plug-in that need no verl: settings, engine, entropies, data files."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from elpo.adapters.verl.engine import VerlEngine
from elpo.adapters.verl.entropies import FailureEntropies
from elpo.adapters.verl.rows import verl_rows, write_rows
from elpo.adapters.verl.settings import check_agreement, entropy_source, read_recipe
from elpo.config import Config
from elpo.interfaces import InfrastructureFault, TurnRequest
from elpo.types import Outcome, Problem, StopReason
from tests.coins import Coins, CoinsOptions, coins_config
from tests.training.small import VOCAB, random_tree, small_model

END = VOCAB - 1


class Keys(dict[str, Any]):
    """A mapping whose keys are attributes too, as OmegaConf's are."""

    def __getattr__(self, name: str) -> Any:
        value = self[name]
        return Keys(value) if isinstance(value, dict) else value


def verl_config(**changes: Any) -> Keys:
    rollout = {"n": 16, "temperature": 1.0}
    actor = {
        "loss_agg_mode": "seq-mean-token-mean",
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.315,
        "policy_loss": {"loss_mode": "elpo"},
    }
    return Keys({"actor_rollout_ref": {"rollout": rollout, "actor": actor | changes}, "elpo": {}})


def test_agreement_is_checked_key_by_key() -> None:
    check_agreement(verl_config(), Config())
    for key, value in (
        ("loss_agg_mode", "token-mean"),
        ("clip_ratio_low", 0.3),
        ("clip_ratio_high", 0.2),
        ("policy_loss", {"loss_mode": "vanilla"}),
    ):
        with pytest.raises(ValueError, match=rf"actor\.{key}.* is .*; the recipe needs"):
            check_agreement(verl_config(**{key: value}), Config())
    fewer = Config.model_validate({"algorithm": {"num_rollouts": 8}})
    with pytest.raises(ValueError, match=r"rollout\.n is 16; the recipe needs 8"):
        check_agreement(verl_config(), fewer)
    once = Config.model_validate({"algorithm": {"loss": {"shared_tokens": "once"}}})
    with pytest.raises(ValueError, match=r"shared_tokens is 'once'; through verl"):
        check_agreement(verl_config(), once)


def test_recipe_and_entropy_are_named_in_verls_configuration() -> None:
    config = verl_config()
    with pytest.raises(ValueError, match=r"add \+elpo\.recipe"):
        read_recipe(config)
    config["elpo"] = {"recipe": "recipes/tiny.yaml", "entropy": "exact"}
    assert read_recipe(config).task.name == "ledger"
    with pytest.raises(ValueError, match=r"elpo\.entropy is 'exact'"):
        entropy_source(config)
    config["elpo"]["entropy"] = "prompt_logprobs"
    assert entropy_source(config) == "prompt_logprobs"
    config["actor_rollout_ref"]["rollout"]["temperature"] = 0.7
    with pytest.raises(ValueError, match="use surprisal"):
        entropy_source(config)


# the engine


class Client:
    """verl's client over a transformers model, with vLLM's prompt log-probabilities."""

    def __init__(self) -> None:
        self.model = small_model()
        self.request_ids: set[str] = set()
        self.parameters: list[dict[str, Any]] = []
        self.broken = False

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> Any:
        self.request_ids.add(request_id)
        self.parameters.append(sampling_params)
        extra: dict[str, Any] = {"global_steps": 3 + len(self.parameters)}
        await asyncio.sleep(0)
        with torch.no_grad():
            return self.answer(prompt_ids, sampling_params, extra)

    def answer(self, prompt_ids: list[int], sampling_params: dict[str, Any], extra: dict[str, Any]) -> Any:
        if self.broken:
            return SimpleNamespace(token_ids=[], log_probs=None, stop_reason="aborted", extra_fields=extra)
        if k := sampling_params.get("prompt_logprobs"):
            logprobs = torch.log_softmax(self.model(torch.tensor([prompt_ids])).logits[0], -1)
            extra["prompt_logprobs"] = [*logprobs[:-1].topk(k).values.tolist(), [0.0] * k]
        ids, logps = list(prompt_ids), []
        for _ in range(sampling_params["max_tokens"]):
            at = torch.log_softmax(self.model(torch.tensor([ids])).logits[0, -1], -1)
            token = int(torch.multinomial(at.exp(), 1))
            ids.append(token)
            logps.append(float(at[token]))
            if token in sampling_params.get("stop_token_ids", []):
                break
        new = ids[len(prompt_ids) :]
        return SimpleNamespace(token_ids=new, log_probs=logps, stop_reason="completed", extra_fields=extra)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def drain(engine: VerlEngine, num: int) -> list[Any]:
    turns: list[Any] = []
    for _ in range(500):
        turns += engine.step()
        if len(turns) == num:
            return turns
    raise AssertionError


def test_turns_come_from_verls_client(loop: asyncio.AbstractEventLoop) -> None:
    client = Client()
    engine = VerlEngine(client.generate, loop, "prompt-7", {"temperature": 1.0, "top_p": 1.0}, (END,), 8)
    for rollout in range(4):
        engine.submit(TurnRequest(rollout, 0, np.arange(5), 6, seed=0))
    turns = drain(engine, 4)
    assert client.request_ids == {"prompt-7"}  # one replica, one prefix cache
    assert all(p["max_tokens"] == 6 and p["stop_token_ids"] == [END] for p in client.parameters)
    assert (min(engine.versions), max(engine.versions)) == (4, 7)
    for turn in turns:
        assert turn.ended == (turn.token_ids[-1] == END)
        np.testing.assert_array_equal(turn.entropies, -turn.logprobs)


def test_surprisal_is_an_unbiased_entropy(loop: asyncio.AbstractEventLoop) -> None:
    client = Client()
    engine = VerlEngine(client.generate, loop, "p", {}, (END,), 150)
    for rollout in range(150):
        engine.submit(TurnRequest(rollout, 0, np.arange(5), 1, seed=0))
    found = np.array([turn.entropies[0] for turn in drain(engine, 150)])
    with torch.no_grad():
        logprobs = torch.log_softmax(client.model(torch.arange(5)[None]).logits[0, -1], -1)
    exact = float(-(logprobs.exp() * logprobs).sum())
    assert abs(found.mean() - exact) < 4 * found.std() / 150**0.5


def test_failures_get_entropies_from_prompt_logprobs(loop: asyncio.AbstractEventLoop) -> None:
    client = Client()
    engine = VerlEngine(client.generate, loop, "p", {}, (END,), 8)
    tree = random_tree(1, client.model)
    verdicts = iter([True, False])
    inner: Any = SimpleNamespace(
        name="t", tool_names=(), grade=lambda problem, steps, stop: Outcome(0.0, next(verdicts))
    )
    task = FailureEntropies(inner, tree.prompt_ids, engine.score)
    good, bad = ([tree.nodes[n].step for n in tree.path(leaf)] for leaf in tree.leaves[1:3])
    before = [step.entropies.copy() for step in good]
    task.grade(tree.problem, good, StopReason.ANSWER)
    assert not client.parameters  # a success costs nothing
    assert all(np.array_equal(step.entropies, old) for step, old in zip(good, before, strict=True))
    task.grade(tree.problem, bad, StopReason.ANSWER)
    assert len(client.parameters) == 1
    ids = tree.context(tree.leaves[2])
    with torch.no_grad():
        logprobs = torch.log_softmax(client.model(torch.from_numpy(ids)[None]).logits[0, :-1], -1)
    exact = -(logprobs.exp() * logprobs).sum(-1).numpy()[len(tree.prompt_ids) - 1 :]
    rest = 1 - logprobs.exp().topk(20).values.sum(-1).numpy()[len(tree.prompt_ids) - 1 :]
    sampled = np.concatenate([step.sampled for step in bad])
    found = np.concatenate([step.entropies for step in bad])
    scored = sampled & (np.arange(len(found)) < len(found) - 1)  # the last token keeps what it had
    bias = (exact - found)[scored]
    assert scored.sum() >= 3
    assert (bias > -1e-5).all()
    assert (bias <= rest[scored] * np.log(VOCAB - 20) + 1e-4).all()
    assert (found[~sampled] == 0).all()


def test_answers_that_are_none_are_faults_of_the_infrastructure(loop: asyncio.AbstractEventLoop) -> None:
    client = Client()
    engine = VerlEngine(client.generate, loop, "p", {}, (END,), 8)
    client.broken = True
    engine.submit(TurnRequest(0, 0, np.arange(5), 6, seed=0))
    with pytest.raises(InfrastructureFault, match=r"0 tokens and 0 log-probabilities \(aborted\)"):
        drain(engine, 1)
    with pytest.raises(InfrastructureFault, match=r"use elpo\.entropy=surprisal"):
        engine.score(np.arange(5), 20)


# data files


def test_rows_hold_the_problems_and_say_which_are_searched(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra elpo[data]")
    files = write_rows(coins_config(tmp_path / "run", "rl.num_problems=5"), tmp_path / "data")
    assert [file.name for file in files] == ["train.parquet", "validation.parquet"]
    train = datasets.load_dataset("parquet", data_files=str(files[0]), cache_dir=str(tmp_path), split="train")
    problems = Coins(CoinsOptions()).problems("train", 5)
    assert [row["extra_info"]["id"] for row in train] == [problem.id for problem in problems]
    assert [json.loads(row["extra_info"]["metadata"]) for row in train] == [p.metadata for p in problems]
    assert train[0]["reward_model"]["ground_truth"] == "full"
    (row,) = verl_rows([Problem("a", (), "1")], "t", "validation")
    assert row["extra_info"]["split"] == "validation"
