"""The pretraining file: how a target language model is trained from scratch."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Strict, model_validator

from vpd.config.block import Block, problem
from vpd.config.run import Cadence, PrintableText
from vpd.config.schedule import Betas, LRSchedule
from vpd.config.targets import TokenData
from vpd.config.values import Count, Flag, Identifier, NonNegative, Positive, Seed, Text, Words


class _Sizes(Block):
    """What every architecture has; the names are those of `config.json`."""

    n_layer: Annotated[Count, Field(examples=[2])]
    """Number of layers."""
    n_head: Annotated[Count, Field(examples=[4])]
    """Query heads of a layer; divides `n_embd`."""
    n_embd: Annotated[Count, Field(examples=[128])]
    """Width of the residual stream."""
    n_intermediate: Count | None = None
    """Width of the MLP; null is 4 `n_embd`."""
    block_size: Count | None = None
    """Longest sequence; null is `data.max_seq_len` − 1, the positions that are trained."""
    vocab_size: Count | None = None
    """Number of tokens; null is the tokenizer's."""
    tie_word_embeddings: Flag = True
    """Whether the head is the transposed embedding."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.n_embd % self.n_head:
            said = f"{self.n_head} heads don't divide n_embd {self.n_embd}"
            raise problem("n_head", said, f"write for example n_head: {_divisor(self.n_embd, self.n_head)}")
        return self

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return self.n_intermediate or 4 * self.n_embd


class _Rotary(_Sizes):
    """What the two architectures with rotary positions have."""

    n_key_value_heads: Count | None = None
    """Key and value heads of a layer; divides `n_head`; null is as many."""
    rotary_base: Annotated[Positive, Field(examples=[10000.0])] = 10000.0
    """Base of the rotary frequencies."""

    @model_validator(mode="after")
    def _heads_can_be_shared_and_turned(self) -> Self:
        if self.n_head % self.kv_heads:
            said = f"{self.kv_heads} key heads don't divide n_head {self.n_head}"
            way_out = f"write for example n_key_value_heads: {_divisor(self.n_head, self.kv_heads)}"
            raise problem("n_key_value_heads", said, way_out)
        if self.n_embd // self.n_head % 2:
            said = f"{self.n_embd} in {self.n_head} heads makes heads of odd width, which rotary positions can't turn"
            raise problem("n_embd", said, f"write a multiple of {2 * self.n_head}")
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads of a layer."""
        return self.n_key_value_heads or self.n_head


class FreshSimpleMLP(_Rotary):
    """LlamaSimpleMLP: RMS norms, rotary grouped-query attention, a two-matrix tanh-GELU MLP."""

    tag: ClassVar[Literal["LlamaSimpleMLP"]] = "LlamaSimpleMLP"

    model_class: Literal["LlamaSimpleMLP"]
    """Selects the architecture."""
    norm_eps: Positive = 1e-6
    """Added under the root of the norms."""


class FreshLlama(_Rotary):
    """Llama: RMS norms, rotary grouped-query attention, SwiGLU."""

    tag: ClassVar[Literal["Llama"]] = "Llama"

    model_class: Literal["Llama"]
    """Selects the architecture."""
    norm_eps: Positive = 1e-5
    """Added under the root of the norms."""


class FreshGPT2(_Sizes):
    """GPT-2: learned positions, layer norms, biases, a tanh-GELU MLP."""

    tag: ClassVar[Literal["GPT2"]] = "GPT2"

    model_class: Literal["GPT2"]
    """Selects the architecture."""
    norm_eps: Positive = 1e-5
    """Added under the root of the norms."""


FreshTarget = Annotated[FreshSimpleMLP | FreshLlama | FreshGPT2, Field(discriminator="model_class")]


class PretrainingOptimizer(Block):
    """AdamW for pretraining, eps 1e-8."""

    lr_schedule: LRSchedule
    """Learning rate over the run."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of matrices and embeddings; norms and biases have none."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and second moments."""
    grad_clip_norm: Positive | None = None
    """Global norm to which the gradient is clipped; null does not clip."""


class PretrainingEval(Block):
    """How often the loss on held-out text is measured, on the same rows each time."""

    batch_size: Annotated[Count, Field(examples=[64])]
    """Evaluation batch size."""
    n_steps: Annotated[Count, Field(examples=[20])]
    """Batches per evaluation; at most the whole split once."""
    every: Annotated[Count, Field(examples=[1000])]
    """Updates between evaluations."""


Prompts = Annotated[tuple[Text, ...], Field(min_length=1), Words("a non-empty list of texts", ["Once upon a time"])]


class PretrainingSamples(Block):
    """Text that the network writes, to be read by a person."""

    every: Annotated[Count, Field(examples=[1000])]
    """Updates between samples; the end has some too."""
    prompts: Prompts | None = None
    """Beginnings that it goes on from; null takes those of evaluation rows."""
    n_prompts: Count = 4
    """Number of evaluation rows that are taken."""
    prompt_tokens: Count = 16
    """Tokens of each that are given."""
    length: Count = 64
    """Tokens that are written."""
    temperature: NonNegative = 0.8
    """Divides the logits before a token is drawn; 0 takes the likeliest."""

    @model_validator(mode="after")
    def _rows_or_prompts(self) -> Self:
        if self.prompts is not None:
            for key in ("n_prompts", "prompt_tokens"):
                if getattr(self, key) != PretrainingSamples.model_fields[key].default:
                    raise problem(key, "has no effect with prompts", "remove the key, or write prompts: null")
        return self


class PretrainingRuntime(Block):
    """Where and how pretraining is computed, on one device."""

    inactive_keys = frozenset({"dp", "mesh"})

    autocast_bf16: Flag | None = None
    """Whether the forward pass is computed in bfloat16; null means on accelerators only. Parameters are float32."""
    device: Text | None = None
    """Device the file was written for; the run uses what is there."""
    remat: Literal["none", "block"] = "none"
    """What the backward pass recomputes."""
    compilation_cache_dir: Text | None = None
    """Where compiled programs are kept; null is a folder shared by the user's runs."""


class PretrainingConfig(Block):
    """A pretraining file."""

    schema_version: Annotated[int, Strict(), Field(ge=1, le=1), Words("the version 1", 1)] = 1
    """Version of this vocabulary."""
    run_name: PrintableText | None = None
    """Name shown in reports."""
    run_id: Identifier | None = None
    """Name of the run directory."""
    out_dir: PrintableText | None = None
    """Directory in which the run directory is made."""
    target: FreshTarget
    """The network to train, from random weights."""
    data: TokenData
    """The text to train it on; a row of `max_seq_len` tokens gives `max_seq_len` − 1 predictions."""
    optimizer: PretrainingOptimizer
    """How it is updated."""
    steps: Annotated[Count, Field(examples=[10000])]
    """Number of updates."""
    batch_size: Annotated[Count, Field(examples=[64])]
    """Rows of a batch."""
    cadence: Cadence
    """How often training reports and saves."""
    eval: PretrainingEval | None = None
    """Evaluation; null evaluates nothing."""
    samples: PretrainingSamples | None = None
    """Samples; null writes none."""
    runtime: PretrainingRuntime = PretrainingRuntime()
    """Where and how the run is computed."""
    seed: Seed = 0
    """Seed of every draw of the run."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        length, block = self.data.max_seq_len, self.block_size
        if length < 2:
            raise problem("data.max_seq_len", f"{length} token has no next one to predict", "write a number >= 2")
        if length > block + 1:
            said = f"rows of {length} tokens are longer than the {block} positions and the last one's next token"
            raise problem(
                "target.block_size", said, f"write block_size: {length - 1}, or data.max_seq_len: {block + 1}"
            )
        return self

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        samples = self.samples
        if samples is None:
            return self
        if samples.prompts is None and self.eval is None:
            said = "beginnings of evaluation rows need an eval block"
            raise problem("samples.prompts", said, "write prompts: [...], or an eval block")
        given = samples.prompt_tokens if samples.prompts is None else 1
        if samples.prompts is None and given > self.data.max_seq_len:
            said = f"{given} is more than the {self.data.max_seq_len} tokens of a row"
            raise problem("samples.prompt_tokens", said, "write a smaller number")
        if given + samples.length > self.block_size:
            said = f"{given} tokens and {samples.length} more are longer than the {self.block_size} positions"
            raise problem("samples.length", said, f"write at most {max(self.block_size - given, 1)}")
        return self

    @property
    def block_size(self) -> int:
        """Longest sequence that the network takes."""
        return self.target.block_size or max(self.data.max_seq_len - 1, 1)


def _divisor(number: int, near: int) -> int:
    """The divisor of a number that is nearest to another."""
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - near))
