"""One typed object describes a run; every mistake in it is found before a model loads.

Recipes are YAML files of it (`elpo.recipes`). Defaults are the paper's where it gives one (Appendix,
hyper-parameters) and DemyAgent's, its base recipe, where it does not (`docs/PAPER.md`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Strict: neither `true` nor "3" nor 3.0 is an integer here.
Positive = Annotated[int, Field(gt=0, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, strict=True)]
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]
Flag = Annotated[bool, Field(strict=True)]


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TinyModelConfig(Section):
    """A Qwen3-architecture model built from scratch, with a tokenizer trained on the task's own text."""

    hidden_size: Positive = 128
    num_layers: Positive = 4
    num_heads: Positive = 4
    num_kv_heads: Positive = 2
    intermediate_size: Positive = 384

    @model_validator(mode="after")
    def _head_shapes(self) -> TinyModelConfig:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 2 * num_heads = {2 * self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters of PEFT on the linear layers; with `rank` 0 all weights are trained.

    No `target_modules`: every linear layer but the vocabulary's. `quantized` keeps the frozen weights in 4
    bits (QLoRA), which needs bitsandbytes and CUDA. Dropout makes the trainer's policy differ from the
    sampler's.
    """

    rank: Count = 0
    alpha: PositiveFloat = 32.0
    dropout: Decay = 0.0
    target_modules: tuple[str, ...] = ()
    quantized: Flag = False

    @model_validator(mode="after")
    def _quantized_weights_are_frozen(self) -> LoraConfig:
        if self.quantized and not self.rank:
            raise ValueError("quantized weights cannot be trained; set rank, for example to 16")
        return self


class ModelConfig(Section):
    """`path` is a model folder or hub name; without one the tiny model is built from scratch.

    `dtype` is what is computed in. Weights that are trained are always kept in float32, since steps of 1e-6
    are lost in bfloat16; frozen weights, those below adapters, are kept in `dtype`.
    """

    path: str | None = None
    tiny: TinyModelConfig = TinyModelConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraConfig = LoraConfig()
    gradient_checkpointing: Flag = False  # less memory for activations, a third more computation in training
    # What training forwards: every token of a tree once, or a padded row for each trajectory. Equal but for
    # rounding. "auto" is "tree" wherever the model can.
    packing: Literal["auto", "tree", "rows"] = "auto"


class TaskConfig(Section):
    """`name` is a built-in task or `module:Class`; `options` are checked by the task itself."""

    name: str = "ledger"
    options: dict[str, Any] = {}


class PythonToolConfig(Section):
    """The Python tool: limits of one call (seconds, megabytes, characters), and what persists between calls.

    `state` "none": nothing, the field's convention; "session": the interpreter's state, throughout a rollout;
    "task": as the task's attribute `python_state` says, nothing where it has none.
    """

    state: Literal["task", "none", "session"] = "task"
    timeout: PositiveFloat = 5.0
    memory_mb: Positive = 2048
    output_chars: Positive = 4000
    num_workers: Positive = 1
    preload: tuple[str, ...] = ()


class SearchToolConfig(Section):
    """The corpus of the search tool and how much of it a result shows; seconds, characters.

    `index` is a file made by `elpo index`; without one, the task's own documents are searched. `bm25s` keeps
    the scores in memory. `http` asks the retrieval server at `url`, such as Search-R1's.
    """

    backend: Literal["sqlite", "bm25s", "http"] = "sqlite"
    index: str | None = None
    url: str | None = None
    top_k: Positive = 3
    timeout: PositiveFloat = 10.0
    output_chars: Annotated[int, Field(ge=80, strict=True)] = 4000

    @model_validator(mode="after")
    def _one_corpus(self) -> SearchToolConfig:
        if self.backend == "http" and (self.url is None or self.index is not None):
            raise ValueError("backend http needs a url such as http://host:8000/retrieve, and no index")
        if self.backend != "http" and self.url is not None:
            raise ValueError(f"backend {self.backend} asks no server; remove url or set backend to http")
        return self


class RolloutConfig(Section):
    """Limits of one trajectory and of the engine. `temperature` is that of training and evaluation."""

    engine: Literal["transformers", "vllm"] = "transformers"
    num_slots: Positive = 64
    max_turns: Positive = 16
    max_tokens: Positive = 20480  # prompt, turns and feedback together
    max_turn_tokens: Positive = 4096
    temperature: PositiveFloat = 1.0
    prefix_cache_mb: Count = 2048
    deterministic: bool = True  # False: never wait for slow tools; batches then vary from run to run

    @model_validator(mode="after")
    def _turn_fits(self) -> RolloutConfig:
        if self.max_turn_tokens > self.max_tokens:
            raise ValueError(f"max_turn_tokens {self.max_turn_tokens} is above max_tokens {self.max_tokens}")
        return self


class VllmConfig(Section):
    """For `rollout.engine` vllm. With a `url`, the server there samples; without, an engine in this process,
    in its share of the GPU's memory (of all memory where there is no GPU), with `arguments` for vLLM's own
    `EngineArgs`. Entropies are made from the `top_k` most likely tokens.
    """

    url: str | None = None
    top_k: Annotated[int, Field(ge=1, le=19, strict=True)] = 19
    gpu_memory_utilization: Fraction = 0.4
    arguments: dict[str, Any] = {}


class StrategyConfig(Section):
    """How the rollouts of one problem are spent. The fields after `name` belong to the named kind."""

    name: Literal[
        "bel", "independent", "random_prefix", "frontier", "posterior", "entropy_branching", "vine"
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
    more, by the sample deviation over all trees of an RL step.
    """

    name: Literal[
        "hierarchical",
        "reward",
        "leave_one_out",
        "floored",
        "optimal_value",
        "tree_group",
        "anchor_group",
        "step_value",
        "prefix_reward",
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


class OptimizerConfig(Section):
    """AdamW with linear warm-up; the rate is then constant or follows a half cosine to zero."""

    learning_rate: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    warmup_steps: Count = 0
    schedule: Literal["constant", "cosine"] = "constant"


class SFTConfig(Section):
    """Cold start on demonstrations. `num_steps` 0 skips it.

    `path` has them as rows of `messages` (`elpo.tasks.conversations`); without one the task gives its own.
    `rename_tools` says what tools of the data are called here, such as `{code_interpreter: python}`.
    """

    num_steps: Count = 0
    path: str | None = None
    rename_tools: dict[str, str] = {}
    num_demonstrations: Positive = 2000
    batch_size: Positive = 32
    microbatch_tokens: Positive = 16384
    checkpoint_every: Positive = 200
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, warmup_steps=10, schedule="cosine")


class RLConfig(Section):
    """One step: `problems_per_step` trees are grown, then trained on in mini-batches of whole trees.

    More than one mini-batch makes the later updates off-policy, which is where clipping acts.
    """

    num_steps: Count = 100
    num_problems: Positive = 10_000  # training problems asked of the task; it may have fewer
    problems_per_step: Positive = 128
    problems_per_minibatch: Positive = 16
    num_epochs: Positive = 1
    microbatch_tokens: Positive = 16384
    max_rollouts: Positive | None = None  # of the run: no step is begun that they would not pay for
    # Log-probabilities of the policy that sampled: the sampler's own, or one more forward pass. "auto" is the
    # sampler's while it agrees with the trainer, which the first step finds out.
    old_logprobs: Literal["auto", "sampler", "recompute"] = "auto"
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _whole_minibatches(self) -> RLConfig:
        if self.problems_per_step % self.problems_per_minibatch:
            raise ValueError(
                f"problems_per_step {self.problems_per_step} is not a multiple of "
                f"problems_per_minibatch {self.problems_per_minibatch}"
            )
        return self


class EvaluationConfig(Section):
    """Held-out success during training: every `every` RL steps (0: only before and after)."""

    every: Count = 10
    num_problems: Positive = 64
    samples_per_problem: Positive = 2


class RunConfig(Section):
    """Where and how a run lives. `seed` decides everything random in it."""

    dir: str = "runs/elpo"
    seed: Count = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: Positive = 10
    trees_every: Positive = 5
    trees_kept: Positive = 4  # trees written at each such step, and at each evaluation
    tensorboard: Flag = True
    wandb: Flag = False  # Weights & Biases; needs the extra wandb
    trackio: Flag = False  # needs the extra trackio


class Config(Section):
    """Everything `elpo train` needs."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    python: PythonToolConfig = PythonToolConfig()
    search: SearchToolConfig = SearchToolConfig()
    rollout: RolloutConfig = RolloutConfig()
    vllm: VllmConfig = VllmConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    sft: SFTConfig = SFTConfig()
    rl: RLConfig = RLConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _a_step_can_be_paid(self) -> Config:
        step = self.rl.problems_per_step * self.algorithm.num_rollouts
        if self.rl.max_rollouts is not None and self.rl.max_rollouts < step:
            raise ValueError(f"rl.max_rollouts {self.rl.max_rollouts} is less than one step needs: {step}")
        return self
