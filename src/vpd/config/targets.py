"""Targets and their data as a run file describes them, told apart by their own fields."""

from difflib import get_close_matches
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from vpd.config.block import Block, problem
from vpd.config.values import Count, CountOrZero, Flag, Fraction, NonNegative, Seed, Text, Words, is_block

TargetKind = Literal["lm", "tms", "resid_mlp", "induction", "traced"]
TARGET_NAMES: dict[TargetKind, str] = {
    "lm": "language-model",
    "tms": "TMS",
    "resid_mlp": "ResidMLP",
    "induction": "induction",
    "traced": "traced",
}


SiteShapes = dict[str, tuple[int, int]]


class Pretrain(Block):
    """How a toy target is trained in-process."""

    steps: Count
    """Number of updates."""
    batch_size: Annotated[Count, Field(examples=[1024])]
    """Batch size."""
    lr: Annotated[NonNegative, Field(examples=[0.005])]
    """Learning rate."""
    seed: Seed = 0
    """Seed of initial weights and data."""


class TMSTarget(Block):
    """The toy model of superposition, trained when the run starts."""

    tag: ClassVar[Literal["tms"]] = "tms"

    n_features: Annotated[Count, Field(examples=[5])]
    """Number of input features."""
    n_hidden: Annotated[Count, Field(examples=[2])]
    """Hidden width."""
    n_hidden_layers: CountOrZero = 0
    """Identity layers between the two linear ones."""
    pretrain: Pretrain
    """How the target is trained."""

    @property
    def site_shapes(self) -> SiteShapes:
        """Sites in the order of the forward pass."""
        f, h = self.n_features, self.n_hidden
        hidden = {f"hidden_layers.{i}": (h, h) for i in range(self.n_hidden_layers)}
        return {"linear1": (f, h), **hidden, "linear2": (h, f)}


class ResidMLPTarget(Block):
    """A residual MLP on sparse features, trained when the run starts."""

    tag: ClassVar[Literal["resid_mlp"]] = "resid_mlp"

    n_features: Annotated[Count, Field(examples=[100])]
    """Number of input features."""
    d_embed: Annotated[Count, Field(examples=[1000])]
    """Width of the residual stream."""
    d_mlp: Annotated[Count, Field(examples=[50])]
    """Neurons per layer."""
    n_layers: Annotated[Count, Field(examples=[1])]
    """Number of layers."""
    act_fn_name: Literal["gelu", "relu"]
    """Activation; gelu is the exact one."""
    in_bias: Flag
    """Whether `mlp_in` has a bias."""
    out_bias: Flag
    """Whether `mlp_out` has a bias."""
    fixed_identity_embedding: Flag
    """Whether the embedding is the identity instead of random unit rows."""
    pretrain: Pretrain
    """How the target is trained."""

    @model_validator(mode="after")
    def _identity_is_square(self) -> Self:
        if self.fixed_identity_embedding and self.n_features != self.d_embed:
            raise problem(
                "fixed_identity_embedding",
                f"an identity embedding needs n_features {self.n_features} == d_embed {self.d_embed}",
                "write fixed_identity_embedding: false, or equal sizes",
            )
        return self

    @property
    def site_shapes(self) -> SiteShapes:
        """Sites in the order of the forward pass."""
        parts = {"mlp_in": (self.d_embed, self.d_mlp), "mlp_out": (self.d_mlp, self.d_embed)}
        return {f"layers.{i}.{part}": shape for i in range(self.n_layers) for part, shape in parts.items()}


class StoredTarget(Block):
    """A toy target from an earlier run; the sites to decompose tell which."""

    tag: ClassVar[Literal["run_path"]] = "run_path"

    run_path: Annotated[Text, Field(examples=["runs/tms_5-2"])]
    """A local run directory with target.safetensors in it, or such a file."""


class InductionTarget(Block):
    """A small attention-only transformer trained on repeated sequences."""

    tag: ClassVar[Literal["induction"]] = "induction"

    kind: Literal["induction"]
    """Selects this target."""
    vocab: Annotated[Count, Field(examples=[64])]
    """Number of tokens, the start token among them."""
    n_layers: Annotated[Count, Field(examples=[2])]
    """Number of layers."""
    n_heads: Annotated[Count, Field(examples=[1])]
    """Attention heads per layer."""
    d_model: Annotated[Count, Field(examples=[16])]
    """Width of the residual stream."""
    seq_len: Annotated[Count, Field(examples=[32])]
    """Sequence length: a start token, then a run of random tokens over and over."""
    pretrain: Pretrain
    """How the target is trained."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.seq_len < 8:
            raise problem("seq_len", f"{self.seq_len} leaves no room to repeat a run of tokens", "write a number >= 8")
        if self.vocab <= self.seq_len // 2:
            raise problem(
                "vocab",
                f"{self.seq_len // 2} distinct tokens and the start token are more than {self.vocab}",
                f"write a number > {self.seq_len // 2}",
            )
        if self.d_model % (2 * self.n_heads):
            raise problem(
                "d_model",
                f"{self.d_model} can't be split into {self.n_heads} heads of even width, as rotary positions need",
                f"write a multiple of {2 * self.n_heads}",
            )
        return self

    @property
    def site_shapes(self) -> SiteShapes:
        """Sites in the order of the forward pass."""
        d, parts = self.d_model, ("q_proj", "k_proj", "v_proj", "o_proj")
        attention = {f"h.{i}.attn.{part}": (d, d) for i in range(self.n_layers) for part in parts}
        return {"wte": (self.vocab, d), **attention, "lm_head": (d, self.vocab)}


class PythonTarget(Block):
    """A function that was traced in Python; `vpd.decompose` writes this block."""

    tag: ClassVar[Literal["traced"]] = "traced"

    kind: Literal["traced"]
    """Selects this target."""
    name: Text
    """Name of the function."""
    fingerprint: Text
    """Hash of its parameters, sites and program: another one is refused."""
    sequence: Flag
    """Whether its activations have a sequence axis."""


class HFSpec(Block):
    """A model of the Hugging Face hub."""

    kind: Literal["hf"]
    """Selects this source."""
    model_class: Text
    """Dotted name of the class."""
    model_name: Text
    """Name on the hub."""


class PretrainedSpec(Block):
    """A model of an earlier pretraining run."""

    kind: Literal["pretrained"]
    """Selects this source."""
    model_class: Text
    """Dotted name of the class."""
    run_path: Text
    """Run directory."""


class FileSpec(Block):
    """A model in a local file."""

    kind: Literal["file"]
    """Selects this source."""
    path: Text
    """Safetensors or GGUF file."""
    model_class: Text
    """Architecture."""


class PackageSpec(Block):
    """A model that ships in an installed Python package."""

    kind: Literal["package"]
    """Selects this source."""
    name: Text
    """Name of the package."""


LMSpec = Annotated[HFSpec | PretrainedSpec | FileSpec | PackageSpec, Field(discriminator="kind")]


class LMTarget(Block):
    """A language model."""

    tag: ClassVar[Literal["lm"]] = "lm"

    spec: LMSpec
    """Where the model comes from."""
    output_extract: Annotated[Text | CountOrZero, Words("a name or an index", "logits")] = "logits"
    """Name or index of the logits in the model's output."""
    weights_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the frozen weights."""
    activation_checkpointing: Flag = False
    """Whether the target recomputes activations in the backward pass."""


class FeatureData(Block):
    """Sparse features for toys."""

    tag: ClassVar[Literal["features"]] = "features"

    feature_probability: Annotated[Fraction, Field(gt=0, examples=[0.05]), Words("a number in (0, 1]", 0.05)]
    """Probability that a feature is active."""
    data_generation_type: Literal["exactly_one_active", "at_least_zero_active"] = "at_least_zero_active"
    """Whether features are active independently, or exactly one at a time."""


class TokenData(Block):
    """Text for language models."""

    tag: ClassVar[Literal["text"]] = "text"

    dataset_name: Text
    """A folder that `vpd prepare-data` made, or text: files, `package:NAME`, a name on the hub ([how](data.md))."""
    data_files: Annotated[Text | tuple[Text, ...], Words("a file pattern or a list of them", "*.parquet")] | None = None
    """Files of a folder or of a data set of the hub; all of them by default. No effect on a prepared folder."""
    revision: Text | None = None
    """Revision of a data set of the hub."""
    tokenizer_name: Text
    """A `tokenizer.json`, a GGUF file, `package:NAME`, or a name on the hub; a prepared folder's own."""
    column_name: Text = "text"
    """Column of parquet files and of the hub, with the text or the token ids."""
    max_seq_len: Count = 512
    """Tokens a sequence; a prepared folder must have rows of this length."""
    train_split: Text = "train"
    """Split to train on; text that has no splits of its own is split by document."""
    eval_split: Text = "test"
    """Split to evaluate on; the name of the training split makes one split for both."""
    is_tokenized: Flag = False
    """Whether the column holds token ids; each list of them is cut by itself."""
    streaming: Flag = False
    """Whether a data set of the hub is prepared without keeping its files. No effect on local data."""
    buffer_size: Count = 1000
    """No effect: rows are shuffled over the whole split. Stored files have it."""
    shuffle_each_epoch: Flag = True
    """Whether each epoch has its own order; the first one's is repeated otherwise."""


_TARGETS = (TMSTarget, ResidMLPTarget, StoredTarget, InductionTarget, PythonTarget, LMTarget)


def _kind_of_target(given: object) -> str | None:
    if isinstance(given, _TARGETS):
        return given.tag
    if not is_block(given):
        return None
    if "spec" in given:
        return LMTarget.tag
    if "kind" in given:
        return PythonTarget.tag if given["kind"] == PythonTarget.tag else InductionTarget.tag
    if "run_path" in given:
        return StoredTarget.tag
    only_resid = set(ResidMLPTarget.model_fields) - set(TMSTarget.model_fields)
    return _closest(given, {ResidMLPTarget.tag: only_resid, TMSTarget.tag: set(TMSTarget.model_fields)})


def _kind_of_data(given: object) -> str | None:
    if isinstance(given, FeatureData | TokenData):
        return given.tag
    if not is_block(given):
        return None
    kinds = {FeatureData.tag: set(FeatureData.model_fields), TokenData.tag: set(TokenData.model_fields)}
    return _closest(given, kinds)


def _closest(given: object, kinds: dict[str, set[str]]) -> str | None:
    """The first kind that owns one of the keys, else the first that owns a similar one."""
    keys = [str(key) for key in given] if is_block(given) else []
    for kind, own in kinds.items():
        if own & set(keys):
            return kind
    for kind, own in kinds.items():
        if any(get_close_matches(key, own, n=1, cutoff=0.7) for key in keys):
            return kind
    return None


ToyTarget = TMSTarget | ResidMLPTarget | InductionTarget
# Sites that look a row up instead of multiplying; no identity can be inserted before one.
LOOKUPS = frozenset({"wte"})
Target = TMSTarget | ResidMLPTarget | StoredTarget | InductionTarget | PythonTarget | LMTarget
Data = FeatureData | TokenData
AnyTarget = Annotated[
    Annotated[TMSTarget, Tag("tms")]
    | Annotated[ResidMLPTarget, Tag("resid_mlp")]
    | Annotated[StoredTarget, Tag("run_path")]
    | Annotated[InductionTarget, Tag("induction")]
    | Annotated[PythonTarget, Tag("traced")]
    | Annotated[LMTarget, Tag("lm")],
    Discriminator(_kind_of_target),
]
AnyData = Annotated[
    Annotated[FeatureData, Tag("features")] | Annotated[TokenData, Tag("text")],
    Discriminator(_kind_of_data),
]
