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


class ModelConfig(Section):
    """`path` is a model folder or hub name; without one the tiny model is built from scratch."""

    path: str | None = None
    tiny: TinyModelConfig = TinyModelConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
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

    num_slots: Positive = 64
    max_turns: Positive = 16
    max_tokens: Positive = 20480  # prompt, turns and feedback together
    max_turn_tokens: Positive = 4096
    temperature: PositiveFloat = 1.0
    prefix_cache_mb: Count = 2048
    deterministic: bool = True  # False: decode while tools run; batches then vary from run to run

    @model_validator(mode="after")
    def _turn_fits(self) -> RolloutConfig:
        if self.max_turn_tokens > self.max_tokens:
            raise ValueError(f"max_turn_tokens {self.max_turn_tokens} is above max_tokens {self.max_tokens}")
        return self


class StrategyConfig(Section):
    """How the rollouts of one problem are spent. The fields after `name` belong to the named kind."""

    name: Literal["bel", "independent", "random_prefix", "frontier"] = "bel"
    max_failures: Positive = 3  # B_max
    min_suffixes: Positive = 1  # X_min
    max_suffixes: Positive = 3  # X_max
    entropy_slope: NonNegativeFloat = 5.0  # beta
    entropy_tokens: Count = 20  # 0: the whole step
    loop: Literal["figure", "printed"] = "figure"

    @model_validator(mode="after")
    def _suffix_range(self) -> StrategyConfig:
        if self.min_suffixes > self.max_suffixes:
            raise ValueError(f"min_suffixes {self.min_suffixes} is above max_suffixes {self.max_suffixes}")
        return self


class CreditConfig(Section):
    """A = w * branch + (1 - w) * trajectory (Eq. 10) and how both are normalised."""

    branch_weight: Fraction = 0.5  # lambda_tree
    std: Literal["population", "sample"] = "population"
    scale: Flag = True
    eps: PositiveFloat = 1e-6


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
    """How token objectives become one number (Eq. 1)."""

    aggregation: Literal["seq-mean-token-mean", "token-mean"] = "seq-mean-token-mean"
    shared_tokens: Literal["duplicate", "once"] = "duplicate"


class AlgorithmConfig(Section):
    """An algorithm is a strategy, a credit rule and a surrogate. `name` picks a row of the registry,
    whose settings the other fields override."""

    name: str = "elpo"
    num_rollouts: Positive = 16  # N_total
    strategy: StrategyConfig = StrategyConfig()
    credit: CreditConfig = CreditConfig()
    clip: ClipConfig = ClipConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _search_can_start(self) -> AlgorithmConfig:
        if self.strategy.name == "bel" and self.strategy.max_failures > self.num_rollouts:
            raise ValueError(
                f"strategy.max_failures {self.strategy.max_failures} is above num_rollouts "
                f"{self.num_rollouts}: no search would ever start"
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
    """Cold start on demonstrations. `num_steps` 0 skips it."""

    num_steps: Count = 0
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
    algorithm: AlgorithmConfig = AlgorithmConfig()
    sft: SFTConfig = SFTConfig()
    rl: RLConfig = RLConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
