"""Rows of the table against the functions of verl and TRL, on the same made-up trajectories.

verl cannot be a test dependency (it needs ray), so its answers are recorded in tests/fixtures/verl with the
script that makes them; the slow test makes them again where verl is installed.
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elpo.algorithm_config import AlgorithmConfig
from elpo.algorithms.credit_rules import assign_credits
from elpo.algorithms.surrogates import SURROGATES
from elpo.packing import Minibatch
from elpo.recipes import load_config
from elpo.training.policy_update import loss_terms, packed, unrolled
from elpo.tree import ROOT, RolloutTree
from elpo.types import Outcome, Problem, Step

FOLDER = Path(__file__).parents[1] / "fixtures" / "verl"
VERL = json.loads((FOLDER / "outputs.json").read_text())
MADE_UP = VERL["made_up"]
MASK = torch.tensor(MADE_UP["mask"])
WHITENED = {"reinforce++", "reinforce++-baseline"}  # over trajectories, as in the paper; verl: over tokens


def algorithm_of(name: str, *overrides: str) -> AlgorithmConfig:
    settings = [f"algorithm.name={name}", *overrides]
    return load_config(None, settings).algorithm


def made_up_trees() -> list[RolloutTree]:
    """Chains of steps, a new one wherever feedback ends; every token has an id of its own."""
    width = MASK.shape[1]
    trees = [
        RolloutTree(Problem(f"p{i}", (), ""), np.zeros(2, int)) for i in range(max(MADE_UP["group"]) + 1)
    ]
    for i, (group, reward) in enumerate(zip(MADE_UP["group"], MADE_UP["rewards"], strict=True)):
        mask = np.array(MADE_UP["mask"][i][: int(MASK[i].nonzero().max()) + 1], bool)
        turns = np.flatnonzero(mask[1:] & ~mask[:-1]) + 1
        steps = [
            Step(
                token_ids=i * width + places,
                sampled=mask[places],
                logprobs=np.float32(MADE_UP["old_logprobs"][i])[places],
                entropies=np.zeros(len(places), np.float32),
            )
            for places in np.split(np.arange(len(mask)), turns)
        ]
        trees[group].add(ROOT, steps, Outcome(reward, reward > 0))
    return trees


TREES = made_up_trees()


def loss_and_gradient(
    algorithm: AlgorithmConfig, build: Callable[..., Minibatch], new: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of the made-up trajectories under log-probabilities `new` [B, T], and its gradient by them."""
    new = new.float().requires_grad_()
    loss = torch.zeros(())
    for part in build(TREES, assign_credits(TREES, algorithm), algorithm.loss, 60).parts:
        logprobs = torch.where(part.sampled, new.flatten()[part.token_ids], 0.0)
        terms, weights, _ = loss_terms(part, logprobs, torch.zeros_like(logprobs))
        loss = loss - (weights * SURROGATES[algorithm.loss.surrogate](terms, algorithm)).sum()
    (gradient,) = torch.autograd.grad(loss, new)
    return loss.detach(), gradient


@pytest.mark.parametrize("build", [packed, unrolled])
@pytest.mark.parametrize("name", VERL["losses"])
def test_advantages_and_losses_are_verls(name: str, build: Callable[..., Minibatch]) -> None:
    theirs = VERL["losses"][name]
    algorithm = algorithm_of(name, *["algorithm.credit.whiten=tokens"] * (name in WHITENED))
    mine = [
        tree_credit.advantages[tree.path(leaf)]
        for tree, tree_credit in zip(TREES, assign_credits(TREES, algorithm), strict=True)
        for leaf in tree.leaves
    ]
    advantages = VERL["advantages"][theirs["advantages"]]
    for i, of_path in enumerate(mine):
        sampled = np.array(advantages[i])[MASK[i].numpy() > 0]
        np.testing.assert_allclose(sampled, of_path[0], rtol=1e-5, atol=1e-6)
        assert (of_path == of_path[0]).all()
    loss, gradient = loss_and_gradient(algorithm, build, torch.tensor(MADE_UP["logprobs"]))
    assert float(loss) == pytest.approx(theirs["loss"], rel=1e-5)
    expected = torch.tensor(theirs["gradient"])
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
def test_the_recorded_answers_are_those_of_verl() -> None:
    pytest.importorskip("verl", reason="verl is not installed; see tests/fixtures/verl/make_outputs.py")
    spec = importlib.util.spec_from_file_location("make_outputs", FOLDER / "make_outputs.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.made_up_trajectories() == MADE_UP
    again = script.answers_of_verl(MADE_UP)
    for name, value in VERL["advantages"].items():
        np.testing.assert_allclose(again["advantages"][name], value, rtol=1e-6)
    for name, losses in VERL["losses"].items():
        assert again["losses"][name]["loss"] == pytest.approx(losses["loss"], rel=1e-6)
        np.testing.assert_allclose(again["losses"][name]["gradient"], losses["gradient"], rtol=1e-6)


@pytest.fixture(scope="module")
def trl_trainers() -> Any:
    """The modules of TRL's two trainers."""
    pytest.importorskip("trl")
    from trl.trainer import grpo_trainer, rloo_trainer

    return SimpleNamespace(grpo=grpo_trainer.GRPOTrainer, rloo=rloo_trainer.RLOOTrainer)


def trl_gradient(
    trainer_class: Any, advantages: Tensor, new: Tensor, **settings: Any
) -> tuple[Tensor, Tensor]:
    """What a trainer's own `_compute_loss` makes of the made-up trajectories. The model is a table."""
    from accelerate import Accelerator

    new = new.float().requires_grad_()
    mask = MASK.float()
    trainer: Any = object.__new__(trainer_class)
    vars(trainer).update(
        {
            "accelerator": Accelerator(cpu=True),
            "args": SimpleNamespace(delta=None, steps_per_generation=1),
            "model": SimpleNamespace(training=True),
            "_metrics": defaultdict(lambda: defaultdict(list)),
            "_get_per_token_logps_and_entropies": lambda *_, **__: (new, torch.zeros_like(new), None),
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "importance_sampling_level": "token",
            "beta": 0.0,
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            "use_vllm": False,
            "aux_loss_enabled": False,
            "_entropy_bonus_enabled": False,
            "current_gradient_accumulation_steps": 1,
            **settings,
        }
    )
    old = torch.tensor(MADE_UP["old_logprobs"])
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(mask), 1),
        "completion_ids": torch.zeros_like(MASK),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "old_logps": (old * mask).sum(1),
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer._compute_loss(None, inputs)
    (gradient,) = torch.autograd.grad(loss, new)
    return loss.detach(), gradient


TRL_LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "dr-grpo": {"loss_type": "dr_grpo", "max_completion_length": 3000},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "torl": {"loss_type": "bnpo"},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},  # a bound of the weight itself
    "corpo": {"loss_type": "grpo"},
}


def advantages_of(algorithm: AlgorithmConfig) -> Tensor:
    credits = assign_credits(TREES, algorithm)
    values = [c.advantages[leaf] for tree, c in zip(TREES, credits, strict=True) for leaf in tree.leaves]
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.slow  # importing TRL takes six seconds
@pytest.mark.parametrize("name", TRL_LOSSES)
def test_losses_are_trls(name: str, trl_trainers: Any) -> None:
    algorithm, new = algorithm_of(name), torch.tensor(MADE_UP["logprobs"])
    expected = trl_gradient(trl_trainers.grpo, advantages_of(algorithm), new, **TRL_LOSSES[name])
    found = loss_and_gradient(algorithm, packed, new)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.slow
def test_the_gradient_of_rloo_is_trls_where_the_policy_is_the_one_that_sampled(trl_trainers: Any) -> None:
    """TRL has the ratio of the sequence in its loss; at a ratio of one that is the score function."""
    algorithm, new = algorithm_of("rloo"), torch.tensor(MADE_UP["old_logprobs"])
    _, theirs = trl_gradient(trl_trainers.rloo, advantages_of(algorithm), new)
    _, mine = loss_and_gradient(algorithm, packed, new)
    assert theirs.abs().max() > 0
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
