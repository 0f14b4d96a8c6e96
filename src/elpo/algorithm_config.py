"""The settings of an algorithm: how it searches, how it credits, what it maximises.

Defaults are the paper's where it gives one (Appendix, hyper-parameters) and DemyAgent's, its base recipe,
where it does not (`docs/PAPER.md`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from elpo.schema import (
    AsWritten,
    Count,
    Flag,
    Fraction,
    NonNegativeFloat,
    OrByName,
    Positive,
    PositiveFloat,
    Section,
)


class StrategyConfig(Section):
    """How the rollouts of one problem are spent. The fields after `name` belong to the named kind; `name` may
    also be `module:function`, a strategy of your own."""

    name: Annotated[
        Literal["bel", "independent", "random_prefix", "frontier", "posterior", "entropy_branching", "vine"],
        OrByName,
        AsWritten,
    ] = "bel"
    max_failures: Positive = 3  # B_max
    min_suffixes: Positive = 1  # X_min
    max_suffixes: Positive = 3  # X_max
    entropy_slope: NonNegativeFloat = 5.0  # beta
    entropy_tokens: Count = 20  # 0: the whole step
    loop: Literal["figure", "printed"] = "figure"
    num_chains: Positive = 4  # random_prefix, entropy_branching, vine: trajectories from the prompt first
    num_samples: Positive = 3  # vine: continuations that value a state
    # entropy_branching: see its docstring.
    branching: Literal["paper", "code"] = "paper"
    entropy_weight: NonNegativeFloat = 0.2
    branch_penalty: Fraction = 0.0
    pre_monitor: Literal["none", "counted", "reused"] = "none"
    # posterior: probability at which a search ends, and what saving a round of waiting is worth in rollouts.
    confidence: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.9
    round_cost: NonNegativeFloat = 0.0
    search_limit: Positive = 3  # posterior: suffixes of one search
    informed: Flag = True  # posterior: the policy's entropies say which steps are likelier wrong

    @model_validator(mode="after")
    def _suffix_range(self) -> StrategyConfig:
        if self.min_suffixes > self.max_suffixes:
            raise ValueError(f"min_suffixes {self.min_suffixes} is above max_suffixes {self.max_suffixes}")
        return self


class CreditConfig(Section):
    """The rule that makes advantages from a tree, and how it normalises.

    `std`, `scale` and `eps` are those of a z-score over a group (and over siblings); `whiten` normalises once
    more, by the sample deviation over all trees of an RL step. `name` may also be `module:function`, a rule
    of your own from a tree to one advantage a node.
    """

    name: Annotated[
        Literal[
            "hierarchical",
            "reward",
            "leave_one_out",
            "floored",
            "optimal_value",
            "tree_group",
            "anchor_group",
            "step_value",
            "prefix_reward",
        ],
        OrByName,
        AsWritten,
    ] = "hierarchical"
    branch_weight: Fraction = 0.5  # lambda_tree: A = w * branch + (1 - w) * trajectory (Eq. 10)
    std: Literal["population", "sample"] = "population"
    scale: Flag = True
    eps: PositiveFloat = 1e-6
    whiten: Literal["none", "trajectories", "tokens"] = "none"
    floor: float = 0.0  # of the baseline, for "floored": the least reward that counts as right
    value_temperature: PositiveFloat = 0.5  # beta_1 of "optimal_value"
    num_trees: Positive = 4  # tree_group: trees of a problem
    anchor: Literal["observation", "prefix"] = "observation"  # anchor_group: what makes two states the same
    discount: Fraction = 0.95  # anchor_group
    step_weight: NonNegativeFloat = 1.0  # anchor_group
    shared_steps: Literal["mean", "own"] = "mean"  # own: each trajectory's z-score, in shared prefixes too
    prefix_reward: Fraction = 0.5  # prefix_reward: what good steps of a failure are worth

    @model_validator(mode="after")
    def _own_is_a_trajectorys(self) -> CreditConfig:
        plain = self.name == "hierarchical" and self.branch_weight == 0 and self.whiten == "none"
        if self.shared_steps == "own" and not plain:
            raise ValueError(
                "shared_steps own is the z-score of a whole trajectory: it needs name hierarchical, "
                "branch_weight 0 and whiten none"
            )
        return self


class ClipConfig(Section):
    """PPO clip range and ELC's relaxation of its lower end (Eq. 11)."""

    low: Fraction = 0.2
    high: NonNegativeFloat = 0.315
    elc: Fraction = 0.115
    scope: Literal["subtree", "searched", "first_wrong"] = "subtree"
    dual: float | None = Field(default=None, gt=1, strict=True)

    @model_validator(mode="after")
    def _lower_bound(self) -> ClipConfig:
        if self.low + self.elc >= 1:
            raise ValueError(f"low + elc = {self.low + self.elc:g} leaves no lower bound; keep it below 1")
        return self


class LossConfig(Section):
    """The objective of a token, and how token objectives become one number (Eq. 1)."""

    surrogate: Literal["ppo", "gspo", "cispo", "reinforce", "value_regression", "balanced"] = "ppo"
    aggregation: Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"] = (
        "seq-mean-token-mean"
    )
    divisor: Positive = 1  # of the sum over tokens, in seq-mean-token-sum-norm
    shared_tokens: Literal["duplicate", "once"] = "duplicate"
    entropy_bonus: NonNegativeFloat = 0.2  # a of "balanced"
    log_ratio_weight: PositiveFloat = 1e-3  # beta_2 of "value_regression"
    kl_weight: NonNegativeFloat = 0.0  # of the KL to the policy that RL began with; the paper has none
    kl_estimator: Literal["k2", "k3"] = "k3"

    @model_validator(mode="after")
    def _mean_over_sequences(self) -> LossConfig:
        if self.surrogate in ("gspo", "value_regression") and self.aggregation != "seq-mean-token-mean":
            raise ValueError(
                f"surrogate {self.surrogate} is about whole sequences; its aggregation is "
                f"seq-mean-token-mean, not {self.aggregation}"
            )
        return self


class RewardConfig(Section):
    """What shapes the task's reward before credit is made from it; without settings, nothing does."""

    overlong_buffer: Fraction = 0.0  # the last share of a response's room, in which it loses up to 1
    call_bonus: NonNegativeFloat = 0.0  # for each tool call of a wrong answer, up to -0.6
    # What a failure gains once a tool call of it could be parsed, and instead once one ran without error.
    stages: tuple[NonNegativeFloat, NonNegativeFloat] | None = None

    @model_validator(mode="after")
    def _later_is_better(self) -> RewardConfig:
        if self.stages and self.stages[0] > self.stages[1]:
            raise ValueError(f"stages {list(self.stages)} reward the earlier stage more than the later one")
        return self


class PromptConfig(Section):
    """Which problems a step is about. The fields after `name` belong to the named kind.

    "open": only groups with both successes and failures, drawn until there are enough, from at most
    `max_rounds` batches. "valuable": groups without variance are replaced by new groups of prompts drawn by
    p (1 - p), at most `max_copies` of each. Whatever is drawn is paid for.
    """

    name: Literal["every", "open", "valuable"] = "every"
    max_rounds: Positive = 10
    max_copies: Positive = 2


class AlgorithmConfig(Section):
    """An algorithm is a strategy, a credit rule and a surrogate. `name` picks a row of the registry,
    whose settings the other fields override."""

    name: str = "elpo"
    num_rollouts: Positive = 16  # N_total
    max_calls: tuple[Positive, ...] = ()  # tool calls of a trajectory in equal phases of training; (): any
    prompts: PromptConfig = PromptConfig()
    strategy: StrategyConfig = StrategyConfig()
    reward: RewardConfig = RewardConfig()
    credit: CreditConfig = CreditConfig()
    clip: ClipConfig = ClipConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _search_can_start(self) -> AlgorithmConfig:
        if self.strategy.name in ("bel", "posterior") and self.strategy.max_failures > self.num_rollouts:
            raise ValueError(
                f"strategy.max_failures {self.strategy.max_failures} is above num_rollouts "
                f"{self.num_rollouts}: no search would ever start"
            )
        return self

    @model_validator(mode="after")
    def _same_trees(self) -> AlgorithmConfig:
        grown, credited = self.strategy.num_chains, self.credit.num_trees
        if self.credit.name == "tree_group" and self.strategy.name == "random_prefix" and grown != credited:
            raise ValueError(
                f"strategy.num_chains {grown} grows other trees than credit.num_trees {credited}"
            )
        return self
