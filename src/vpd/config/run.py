"""The run file: one self-contained description of a run."""

from typing import Annotated, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, Strict, field_serializer, model_validator

from vpd.config.block import Block, problem
from vpd.config.checks import check_run
from vpd.config.importance import CIConfig
from vpd.config.losses import AnyLoss
from vpd.config.metrics import EvalMetric
from vpd.config.schedule import Optimizer
from vpd.config.sites import target_kind, tied_pairs
from vpd.config.targets import AnyData, AnyTarget, PythonTarget, TargetKind, ToyTarget
from vpd.config.values import (
    Count,
    CountOrZero,
    Flag,
    Glob,
    Identifier,
    MeshSize,
    NonNegative,
    Seed,
    Text,
    Words,
)


class DecompositionTarget(Block):
    """Sites to decompose, and into how many subcomponents."""

    module_pattern: Glob
    """Glob over site names; matches at least one."""
    C: Annotated[Count, Field(examples=[20])]
    """Number of subcomponents of each matched site."""


Sites = Annotated[
    tuple[DecompositionTarget, ...],
    Field(min_length=1),
    Words("a non-empty list of blocks", [{"module_pattern": "linear1", "C": 20}]),
]
TiedPair = Annotated[tuple[Glob, Glob], Words("a pair of site names", ["linear1", "linear2"])]
TiedWeights = Annotated[tuple[TiedPair, ...], Words("a list of pairs of site names", [["linear1", "linear2"]])]
Losses = Annotated[
    tuple[AnyLoss, ...],
    Field(min_length=1),
    Words("a non-empty list of losses", [{"type": "FaithfulnessLoss", "coeff": 1.0}]),
]
Metrics = Annotated[tuple[EvalMetric, ...], Words("a list of metrics", [{"type": "CI_L0"}])]


class PD(Block):
    """The decomposition: what is learned, and how."""

    seed: Seed = 0
    """Seed of every draw of the run."""
    n_mask_samples: Annotated[Count, Field(examples=[1])]
    """Random masks per stochastic term and step."""
    sampling: Literal["continuous", "binomial"] = "continuous"
    """Distribution of stochastic sources; binomial also puts noise on the importances that feed masks."""
    sigmoid_type: Literal["normal", "hard", "leaky_hard", "lower_leaky_hard", "upper_leaky_hard", "swish_hard"] = (
        "leaky_hard"
    )
    """Squashing of causal importances; leaky_hard is the lower- and upper-leaky pair."""
    use_delta_component: Flag = True
    """Whether the weight delta is a channel of its own."""
    tied_weights: TiedWeights | None = None
    """Pairs of sites that share weights, started as the second (svd: as the first); null ties a TMS, [] nothing."""
    decomposition_targets: Sites
    """Sites to decompose; a site matches one pattern."""
    identity_decomposition_targets: Sites | None = None
    """Sites before which an identity matrix is inserted and decomposed."""
    initialization: Literal["normal", "svd"] = "normal"
    """How V and U start; svd: as singular pairs of the weight, and those beyond its rank with a normal V and U = 0."""
    ci_config: CIConfig
    """The causal-importance function."""
    loss_metrics: Losses
    """Terms of the total loss, in order."""
    components_optimizer: Optimizer
    """Optimizer of V and U."""
    ci_fn_optimizer: Optimizer
    """Optimizer of the causal-importance function."""
    steps: Annotated[Count, Field(examples=[10000])]
    """Number of updates."""
    batch_size: Annotated[Count, Field(examples=[4096])]
    """Global batch size."""
    faithfulness_warmup_steps: CountOrZero = 0
    """Updates on faithfulness alone before the first step."""
    faithfulness_warmup_lr: NonNegative = 0.001
    """Learning rate of that warm-up."""
    faithfulness_warmup_weight_decay: NonNegative = 0.0
    """Weight decay of that warm-up."""

    @model_validator(mode="after")
    def _warmup_keys_have_effect(self) -> Self:
        if self.faithfulness_warmup_steps == 0:
            for key in ("faithfulness_warmup_lr", "faithfulness_warmup_weight_decay"):
                value, default = getattr(self, key), PD.model_fields[key].default
                if value != default:
                    raise problem(
                        key,
                        f"{value:g} has no effect with faithfulness_warmup_steps: 0",
                        "write faithfulness_warmup_steps > 0, or remove the key",
                    )
        return self


class Mesh(Block):
    """Devices along each axis of the mesh."""

    data: MeshSize = -1
    """Along the batch; -1 takes what is left."""
    fsdp: MeshSize = 1
    """Along sharded parameters."""
    model: MeshSize = 1
    """Along matrices."""

    @model_validator(mode="after")
    def _sizes_can_be_told(self) -> Self:
        sizes = self.sizes
        for axis, size in sizes.items():
            if size == 0:
                raise problem(axis, "is an axis without devices", "write 1 for an axis that is not used")
        left = [axis for axis, size in sizes.items() if size == -1]
        if len(left) > 1:
            raise problem(left[1], f"takes what is left, and so does {left[0]}", "write -1 once")
        return self

    @property
    def sizes(self) -> dict[str, int]:
        """Of each axis, as written."""
        return {"data": self.data, "fsdp": self.fsdp, "model": self.model}


class Runtime(Block):
    """Where and how the run is computed; changes no result beyond rounding."""

    autocast_bf16: Flag | None = None
    """Whether forwards are computed in bfloat16; null means on accelerators only."""
    device: Text | None = None
    """Device the file was written for; the run uses what is there."""
    dp: Count | None = None
    """Number of data-parallel devices; null takes what is there."""
    mesh: Mesh | None = None
    """Device mesh; null is data-parallel."""
    placement: Literal["ddp", "zero", "fsdp"] = "ddp"
    """Where parameters and optimizer state live."""
    remat: Literal["none", "block"] = "none"
    """What the backward pass recomputes."""
    remat_recon_forwards: Flag = False
    """Whether masked forwards are recomputed in the backward pass."""
    reuse_prefix: Flag = True
    """Whether layers below the first live site are taken from the clean forward."""
    steps_per_dispatch: Annotated[Count | Literal["auto"], Words("auto or an integer >= 1", "auto")] = "auto"
    """Training steps per call of the compiled program."""
    compilation_cache_dir: Text | None = None
    """Where compiled programs are kept; null is a folder shared by the user's runs."""


class DenseLogPhase(Block):
    """A first phase with more frequent logging."""

    every: Annotated[Count, Field(examples=[10])]
    """Steps between log lines in the phase."""
    until_step: Annotated[Count, Field(examples=[1000])]
    """Step at which the phase ends."""


class Cadence(Block):
    """How often training reports and saves."""

    train_log_every: Annotated[Count, Field(examples=[100])]
    """Steps between log lines."""
    dense_log_phase: DenseLogPhase | None = None
    """More frequent logging at the start."""
    save_every: Count | None = None
    """Steps between checkpoints; null saves only at the end."""
    keep_last_n_checkpoints: Count | None = None
    """Number of checkpoints kept; null keeps all."""

    @model_validator(mode="after")
    def _keeping_needs_saving(self) -> Self:
        if self.keep_last_n_checkpoints is not None and self.save_every is None:
            raise problem(
                "keep_last_n_checkpoints",
                f"{self.keep_last_n_checkpoints} has no effect without save_every",
                "write for example save_every: 1000, or keep_last_n_checkpoints: null",
            )
        return self


class Eval(Block):
    """How often and on what the run is evaluated."""

    batch_size: Annotated[Count, Field(examples=[4096])]
    """Evaluation batch size."""
    n_steps: Annotated[Count, Field(examples=[10])]
    """Batches per evaluation."""
    every: Annotated[Count, Field(examples=[1000])]
    """Updates between fast evaluations."""
    slow_every: Annotated[Count, Field(examples=[5000])]
    """Updates between slow evaluations, with figures; a multiple of `every`."""
    slow_on_first_step: Flag = True
    """Whether the first evaluation is a slow one."""
    metrics: Metrics
    """What is computed, beside the losses trained on."""

    @model_validator(mode="after")
    def _slow_ones_fall_on_fast_ones(self) -> Self:
        if self.slow_every % self.every:
            raise problem(
                "slow_every",
                f"must be a multiple of every {self.every}, got {self.slow_every}",
                f"write for example slow_every: {self.every * max(1, round(self.slow_every / self.every))}",
            )
        return self

    @field_serializer("metrics", mode="wrap")
    def _without_coefficients(self, metrics: object, dump: SerializerFunctionWrapHandler) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = dump(metrics)
        return [{key: value for key, value in entry.items() if key != "coeff"} for entry in entries]


class Wandb(Block):
    """Logging to Weights & Biases; needs the extra."""

    project: Text
    """Project."""
    entity: Text | None = None
    """Account or team."""
    group: Text | None = None
    """Group of runs."""
    tags: Annotated[tuple[Text, ...], Words("a list of texts", ["toy"])] = ()
    """Tags."""


class Logging(Block):
    """Where metrics go beside metrics.jsonl."""

    tensorboard: Flag = False
    """Whether TensorBoard event files are written, in `tensorboard/` of the run directory; needs the extra."""


class ResumeProvenance(Block):
    """The run whose V, U and causal-importance function this one begins with; all else begins anew."""

    parent_run_dir: Text
    """Its run directory."""
    parent_step: CountOrZero | None = None
    """Its checkpoint; null is the newest good one."""


PrintableText = Annotated[
    Text,
    Field(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"),
    Words("a non-empty text on one line", "my-run"),
]


class RunConfig(Block):
    """A run file."""

    schema_version: Annotated[int, Strict(), Field(ge=1, le=1), Words("the version 1", 1)] = 1
    """Version of this vocabulary."""
    run_name: PrintableText | None = None
    """Name shown in reports."""
    run_id: Identifier | None = None
    """Name of the run directory."""
    out_dir: PrintableText | None = None
    """Directory in which the run directory is made."""
    target: AnyTarget
    """The network that is decomposed."""
    data: AnyData | None = None
    """What it is run on; an induction target makes its own, a traced one is given it in Python."""
    pd: PD
    """The decomposition."""
    runtime: Runtime = Runtime()
    """Where and how the run is computed."""
    cadence: Cadence
    """How often training reports and saves."""
    eval: Eval | None = None
    """Evaluation; null evaluates nothing."""
    logging: Logging = Logging()
    """Where metrics go beside metrics.jsonl."""
    wandb: Wandb | None = None
    """Logging to Weights & Biases."""
    resume_provenance: ResumeProvenance | None = None
    """The run this one begins from."""

    @model_validator(mode="after")
    def _is_coherent(self) -> Self:
        check_run(self)
        return self

    @property
    def target_kind(self) -> TargetKind:
        """Which target this is; a stored toy is told by the sites to decompose."""
        return target_kind(self.target, self._patterns)

    @property
    def has_sequence(self) -> bool:
        """Whether the target's activations have a sequence axis."""
        if isinstance(self.target, PythonTarget):
            return self.target.sequence
        return self.target_kind in ("lm", "induction")

    @property
    def site_names(self) -> tuple[str, ...] | None:
        """All sites of the target in the order of its forward pass; null where only the target knows."""
        return tuple(self.target.site_shapes) if isinstance(self.target, ToyTarget) else None

    @property
    def tied_pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of sites that share their weights; V and U start as the second one's."""
        return tied_pairs(self.pd.tied_weights, self.target_kind, self._patterns)

    @property
    def _patterns(self) -> tuple[str, ...]:
        return tuple(item.module_pattern for item in self.pd.decomposition_targets)
