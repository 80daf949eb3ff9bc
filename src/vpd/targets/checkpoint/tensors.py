"""From the named tensors of a file to the stacked arrays of a model, and back, one tensor at a time."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr, tree_leaves_with_path, tree_map_with_path
from jaxtyping import Array, Shaped

from vpd.errors import RunError
from vpd.targets.checkpoint.names import LLAMA, Layout, Place
from vpd.targets.checkpoint.sizes import Values, abstract_language_model
from vpd.targets.gpt2 import GPT2
from vpd.targets.language_model import LanguageModel

Model = TypeVar("Model", bound=LanguageModel)
Tensor = Shaped[np.ndarray, "..."]
Shape = tuple[int, ...]
_LISTED = 3


@dataclass(frozen=True)
class Checkpoint:
    """An opened file of weights: what is in it, and how to read one tensor.

    Attributes:
        source: its path, for messages.
        format: safetensors, gguf or npz.
        values: of its configuration.
        layout: of its tensors.
        shapes: of its tensors as they are stored.
        storage: type that each tensor is stored in.
        readable: the types that can be read.
        read: one tensor as float32, float16 or bfloat16.
    """

    source: str
    format: str
    values: Values
    layout: Layout
    shapes: Mapping[str, Shape]
    storage: Mapping[str, str]
    readable: frozenset[str]
    read: Callable[[str], Tensor]


@dataclass(frozen=True)
class Fit:
    """How the tensors of a file fit the model that its configuration describes; each row is one line of text."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    unreadable: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether the model can be read."""
        return not (self.missing or self.unexpected or self.misshaped or self.unreadable)

    def sentence(self, source: str) -> str:
        """What does not fit, the first few of each kind."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.misshaped,
            "of a type that can't be read": self.unreadable,
        }
        said = [f"{len(rows)} {kind} ({_first(rows)})" for kind, rows in kinds.items() if rows]
        return f"the tensors of {source} don't fit its configuration: {'; '.join(said)}"


def _first(rows: tuple[str, ...]) -> str:
    return ", ".join(rows[:_LISTED]) + (f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else "")


def named_leaves(model: LanguageModel) -> dict[str, Array | jax.ShapeDtypeStruct]:
    """The arrays of a model by field, of an uncut stack of layers with the first axis."""
    return {_field(path): leaf for path, leaf in tree_leaves_with_path(model)}


def _field(path: tuple[object, ...]) -> str:
    return next(keystr((key,), simple=True) for key in reversed(path) if isinstance(key, GetAttrKey))


def expected_shapes(abstract: LanguageModel, layout: Layout) -> dict[Place, Shape]:
    """What a file must hold: every tensor with the shape that it is stored in."""
    leaves = named_leaves(abstract)
    found: dict[Place, Shape] = {}
    for place in layout.places(abstract.layers.depth, tied=abstract.lm_head is None):
        shape = leaves[place.leaf].shape[0 if place.layer is None else 1 :]
        found[place] = shape[::-1] if place.leaf in layout.transposed else shape
    return found


def fit(checkpoint: Checkpoint, abstract: LanguageModel) -> Fit:
    """Compare what a file holds with what the model needs, before anything is read."""
    expected = {place.name: shape for place, shape in expected_shapes(abstract, checkpoint.layout).items()}
    present = [name for name in expected if name in checkpoint.shapes]
    extra = [n for n in checkpoint.shapes if n not in expected and not checkpoint.layout.ignored.fullmatch(n)]
    if abstract.lm_head is None:
        extra = [n for n in extra if n != checkpoint.layout.names.get("lm_head")]  # compared with the embedding later
    return Fit(
        missing=tuple(name for name in expected if name not in checkpoint.shapes),
        unexpected=tuple(extra),
        misshaped=tuple(
            f"{name} {checkpoint.shapes[name]} for {expected[name]}"
            for name in present
            if checkpoint.shapes[name] != expected[name]
        ),
        unreadable=tuple(
            f"{name} {checkpoint.storage[name]}"
            for name in present
            if checkpoint.storage[name] not in checkpoint.readable
        ),
    )


def read_model(checkpoint: Checkpoint, model_class: str | None, dtype: str) -> LanguageModel:
    """The model, its arrays on the default device.

    Everything is compared before the first tensor is read. Each tensor is converted into its place in the array that it
    belongs to, and each array goes to the device when it is whole: beside the model there is one array and one tensor.

    Args:
        checkpoint: the file.
        model_class: its architecture; None takes what its configuration says.
        dtype: of the arrays.

    Raises:
        RunError: where tensors and configuration don't fit, or a value can't be held.
    """
    abstract = abstract_language_model(
        settled_values(checkpoint), model_class, dtype, f"the configuration of {checkpoint.source}"
    )
    found = fit(checkpoint, abstract)
    if not found.whole:
        raise RunError(found.sentence(checkpoint.source))
    if abstract.lm_head is None:
        _refuse_other_head(checkpoint)
    places: dict[str, list[Place]] = {}
    for place in expected_shapes(abstract, checkpoint.layout):
        places.setdefault(place.leaf, []).append(place)

    def read(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        whole = np.empty(leaf.shape, leaf.dtype)
        for place in places[_field(path)]:
            _put(checkpoint, abstract, place, whole if place.layer is None else whole[place.layer])
        return jnp.asarray(whole)

    return tree_map_with_path(read, abstract)


def _put(checkpoint: Checkpoint, model: LanguageModel, place: Place, into: Tensor) -> None:
    tensor, layout = checkpoint.read(place.name), checkpoint.layout
    if place.leaf in layout.transposed:
        tensor = tensor.T
    if layout.interleaved and (heads := rotary_heads(model, place.leaf)):
        tensor = halves(tensor, heads)
    with np.errstate(over="ignore"):
        into[...] = tensor
    if not np.isfinite(into).all():
        raise RunError(
            f"{place.name} of {checkpoint.source} has values that are not finite in {into.dtype}; "
            "read it in a wider weights_dtype, or mend the file"
        )


def settled_values(checkpoint: Checkpoint) -> Values:
    """The configuration, and whether the head is the embedding where it leaves that to the tensors."""
    head = checkpoint.layout.names.get("lm_head")
    if checkpoint.values.get("tie_word_embeddings") is not None or head is None or checkpoint.format != "safetensors":
        return checkpoint.values
    if checkpoint.layout is LLAMA:
        return checkpoint.values  # there it means an own head
    tied = head not in checkpoint.shapes or _same_head(checkpoint, head)
    return {**checkpoint.values, "tie_word_embeddings": tied}


def _same_head(checkpoint: Checkpoint, head: str) -> bool:
    embedding = checkpoint.layout.embedding
    if checkpoint.shapes.get(embedding) != checkpoint.shapes[head]:
        return False
    return bool(np.array_equal(checkpoint.read(head), checkpoint.read(embedding)))


def _refuse_other_head(checkpoint: Checkpoint) -> None:
    head = checkpoint.layout.names.get("lm_head")
    if head is not None and head in checkpoint.shapes and not _same_head(checkpoint, head):
        raise RunError(
            f"{checkpoint.source} is said to have a tied head, and {head} differs from {checkpoint.layout.embedding}; "
            "write tie_word_embeddings: false in its configuration"
        )


def rotary_heads(model: LanguageModel, leaf: str) -> int | None:
    """Number of heads of an array whose columns are turned by position, else None."""
    if isinstance(model, GPT2):
        return None
    return {"q_proj": model.n_heads, "k_proj": model.n_kv_heads}.get(leaf)


def halves(x: Shaped[np.ndarray, "d_in d_out"], n_heads: int) -> Shaped[np.ndarray, "d_in d_out"]:
    """Columns of each head from neighbouring rotary pairs to pairs that lie half a head apart."""
    return x.reshape(x.shape[0], n_heads, -1, 2).swapaxes(2, 3).reshape(x.shape)


def pairs(x: Shaped[np.ndarray, "d_in d_out"], n_heads: int) -> Shaped[np.ndarray, "d_in d_out"]:
    """The inverse of :func:`halves`."""
    return x.reshape(x.shape[0], n_heads, 2, -1).swapaxes(2, 3).reshape(x.shape)


def tensors_of(model: LanguageModel, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a file of this layout holds, made one at a time; layers may be cut into runs."""
    for place in layout.places(model.layers.depth, tied=model.lm_head is None):
        tensor = np.asarray(_array(model, place))
        if layout.interleaved and (heads := rotary_heads(model, place.leaf)):
            tensor = pairs(tensor, heads)
        yield place.name, np.ascontiguousarray(tensor.T if place.leaf in layout.transposed else tensor)


def _array(model: LanguageModel, place: Place) -> Array:
    if place.layer is None:
        return getattr(model, place.leaf)
    run = next(run for run in model.layers if run.first <= place.layer < run.first + run.depth)
    return getattr(run.stack, place.leaf)[place.layer - run.first]


def is_quantised(storage: Iterable[str]) -> bool:
    """Whether the weights are what a quantised file stands for, rather than what was trained."""
    return any(kind.startswith("Q") for kind in storage)


def storage_counts(checkpoint: Checkpoint) -> dict[str, int]:
    """How many tensors are stored in each type."""
    held = {name: kind for name, kind in checkpoint.storage.items() if not checkpoint.layout.ignored.fullmatch(name)}
    return dict(Counter(held.values()).most_common())
