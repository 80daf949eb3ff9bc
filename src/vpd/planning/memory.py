"""Bytes on one device: what a program is given, by role and exactly, and what it makes, counted from shapes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.tree_util import GetAttrKey
from jaxtyping import Array

from vpd.data.feed import shape_given
from vpd.decomposition import ComponentSet
from vpd.experiment import Experiment, leading_of, state_template
from vpd.objective import ReconTerm, total_loss
from vpd.objective.adversary import Sources
from vpd.objective.total import persistent_loss, persistent_terms
from vpd.planning.abstract import abstract_experiment, batch_template, compute_bytes
from vpd.targets import frozen_weights
from vpd.targets.base import Target
from vpd.targets.divergence import CHUNK
from vpd.targets.layers import layers_of
from vpd.training.placed import state_shardings
from vpd.training.state import TrainState
from vpd.training.step import clean_scene, importances

Role = Literal["frozen target", "V and U", "CI function", "moments", "sources", "batch", "counters"]
Leaf = Array | jax.ShapeDtypeStruct


def argument_bytes(experiment: Experiment) -> dict[Role, int]:
    """Bytes that the training program is given on one device, by role: exactly what the shardings leave there.

    Args:
        experiment: abstract or real, on its placement; ``sources`` are with their moments, ``moments`` those of V, U
            and the CI function, ``counters`` the step, the number of steps and the seed.
    """
    placement, target = experiment.placement, experiment.target
    state = state_template(experiment)
    where = None if placement is None else state_shardings(placement, experiment.problem, state)
    found: dict[Role, int] = dict.fromkeys(Role.__args__, 0)
    frozen = None if placement is None else placement.parameters("frozen", target)
    found["frozen target"] = _bytes(target, frozen)
    shards = None if where is None else jax.tree.leaves(where)
    for i, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(state)[0]):
        found[_role(path)] += _leaf_bytes(leaf, None if shards is None else shards[i])
    given = shape_given(experiment.train_batch)
    if given is not None:
        batch = jax.ShapeDtypeStruct(given, jnp.int32)
        found["batch"] = _leaf_bytes(batch, None if placement is None else placement.split_batch(given, axis=1))
    found["counters"] += 8  # number of steps and seed
    return found


def _role(path: Sequence[object]) -> Role:
    match path:
        case (GetAttrKey(name="decomposition"), GetAttrKey(name="components"), *_):
            return "V and U"
        case (GetAttrKey(name="decomposition"), *_):
            return "CI function"
        case (_, GetAttrKey(name="components_optimizer" | "ci_fn_optimizer"), *_):
            return "moments"
        case (_, GetAttrKey(name="adversaries"), *_):
            return "sources"
        case _:
            return "counters"


def _bytes(tree: object, where: object = None) -> int:
    leaves = jax.tree.leaves(tree)
    shards = [None] * len(leaves) if where is None else jax.tree.leaves(where)
    return sum(_leaf_bytes(leaf, one) for leaf, one in zip(leaves, shards, strict=True))


def _leaf_bytes(leaf: Leaf, where: NamedSharding | None) -> int:
    shape = leaf.shape if where is None else where.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


@dataclass(frozen=True)
class Temporaries:
    """Bytes that a step makes on one device beside its arguments, in each of its phases, by what they are."""

    phases: dict[str, dict[str, int]]

    @property
    def phase(self) -> str:
        """The one that holds most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, int]:
        """What lives in it."""
        return self.phases[self.phase]

    @property
    def bytes(self) -> int:
        """Of that phase."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Kept:
    """Bytes that follow the size of the batch, for so many examples of it: what forwards leave to backward passes.

    Attributes:
        examples: how many.
        record: of the clean forward.
        ci: of the CI function.
        terms: of the masked forwards of a recon term, together.
        ascents: of an adversary's ascent.
    """

    examples: int
    record: int
    ci: int
    terms: dict[str, int]
    ascents: dict[str, int]

    def on(self, examples: int) -> "Kept":
        """For so many examples."""

        def scaled(size: int) -> int:
            return -(-size * examples // self.examples)

        terms, ascents = ({n: scaled(size) for n, size in of.items()} for of in (self.terms, self.ascents))
        return Kept(examples, scaled(self.record), scaled(self.ci), terms, ascents)


def temporaries_from_shapes(experiment: Experiment, kept: Kept | None = None) -> Temporaries:
    """What a step holds beside its arguments, phase by phase, where every phase ends before the next begins.

    What forwards keep for their backward passes is counted by JAX's own differentiation of them, before the compiler
    leaves any of it out. Copies in the compute dtype are counted whole, also of parameters that are split: they are
    gathered to be multiplied with. A gradient is whole in the compute dtype; in float32 it is split as its parameter
    is, but for the largest one, which is being summed.

    Args:
        experiment: abstract, on its placement.
        kept: from :func:`kept_for_backward`, where it is known from the same experiment on another placement.
    """
    c, problem, config = compute_bytes(experiment), experiment.problem, experiment.config
    placement, state = experiment.placement, state_template(experiment)
    examples = config.pd.batch_size // (1 if placement is None else placement.batch_shards)
    kept = (kept or kept_for_backward(experiment)).on(examples)
    given = argument_bytes(experiment)
    components = _Trained.of(state.decomposition.components, given["V and U"])
    ci_fn = _Trained.of(state.decomposition.ci_fn, given["CI function"])
    positions = math.prod(leading_of(config, experiment.target)) // config.pd.batch_size * examples
    importance = positions * sum(site.depth * site.C for site in problem.sites) * c
    adversaries = state.training.adversaries
    moments = [math.prod(x.shape) for one in adversaries.values() for x in jax.tree.leaves((one.m, one.v))]
    sources = given["sources"] // (3 if moments else 1)
    softmaxes = _softmaxes(experiment, positions)
    base = {
        "copies in the compute dtype": _copies(experiment, components.entries + ci_fn.entries, c),
        "clean forward": kept.record,
        "kept for the CI function's backward": kept.ci,
        "importances": 2 * importance,
    }
    sums = {"gradients of V and U": components.here, "gradients of importances": 2 * importance}
    phases: dict[str, dict[str, int]] = {}
    for name, size in kept.ascents.items():
        own = {"kept for the forward's backward": size, "sources in motion": given["sources"] + sources}
        phases[f"ascents of {name}"] = base | own | softmaxes
    for name, size in kept.terms.items():
        own = {
            "kept for the forward's backward": size,
            "gradients of this term": components.gradients(c) + importance + sources,
        }
        phases[name] = base | sums | own | softmaxes
    weights = [4 * site.depth * site.d_in * site.d_out for site in problem.sites]
    phases["faithfulness and sparsity"] = (
        base | sums | {"weight deltas": _split(sum(weights) + 2 * max(weights), components)}
    )
    backward = {"gradients of the CI function": ci_fn.gradients(c), "gradients of its outputs": 2 * importance}
    phases["backward of the CI function"] = base | sums | backward
    update = max(_split(2 * 4 * of.largest, of) for of in (components, ci_fn))
    summed = components.here + ci_fn.here
    phases["optimizers"] = {"gradients": summed, "one update": update}
    return Temporaries(phases)


@dataclass(frozen=True)
class _Trained:
    """Parameters of one group: entries of all and of the largest array, and bytes of the float32 ones on one device."""

    entries: int
    largest: int
    here: int

    @staticmethod
    def of(tree: object, here: int) -> "_Trained":
        """Those of a tree."""
        return _Trained(_entries(tree), max(leaf.size for leaf in jax.tree.leaves(tree)), here)

    def gradients(self, c: int) -> int:
        """Bytes of their gradient while it is made; summed in float32 it takes what they take."""
        return c * self.entries + self.here + (4 * self.largest if self.here < 4 * self.entries else 0)


def _split(size: int, like: _Trained) -> int:
    """Bytes on one device of what is split as these parameters are."""
    return size * like.here // (4 * like.entries)


def _copies(experiment: Experiment, trained: int, c: int) -> int:
    """Parameters in the dtype that they are multiplied in, whole: gathered where they are split."""
    placement, target = experiment.placement, experiment.target
    parts = 1 if placement is None else placement.mesh.shape["fsdp"] * placement.mesh.shape["model"]
    preset = "ddp" if placement is None or parts == 1 else placement.preset
    masters = c * trained if c < 4 or preset != "ddp" else 0
    cast = sum(leaf.size * c for leaf in jax.tree.leaves(target) if leaf.dtype.itemsize != c)
    if preset != "fsdp":
        return masters + cast
    # A layer is gathered while the one before it is computed; what lies outside the layers is gathered whole.
    stacks = [run.stack for layers in layers_of(target) for run in layers]
    layer = max((_entries(stack) // jax.tree.leaves(stack)[0].shape[0] for stack in stacks), default=0)
    outside = _entries(target) - sum(_entries(stack) for stack in stacks)
    return masters + cast + c * (2 * layer + outside)


def _softmaxes(experiment: Experiment, positions: int) -> dict[str, int]:
    """Of both sides in float32, for a chunk of a wide vocabulary: logits, probabilities, and their slopes."""
    vocab = getattr(experiment.target, "vocab_size", 0)
    return {"softmaxes": 6 * 4 * positions * min(vocab, CHUNK)} if vocab else {}


def _entries(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def kept_for_backward(experiment: Experiment) -> Kept:
    """What forwards keep, for the whole batch of an abstract experiment.

    It is the difference that as many examples again make: what does not follow the batch are parameters.
    """
    config = experiment.config
    twice = config.model_copy(update={"pd": config.pd.model_copy(update={"batch_size": 2 * config.pd.batch_size})})
    one = _kept(replace(experiment, placement=None))
    two = _kept(replace(abstract_experiment(twice, experiment.target), problem=experiment.problem))

    def between(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
        return {name: max(b[name] - size, 0) for name, size in a.items()}

    terms, ascents = between(one.terms, two.terms), between(one.ascents, two.ascents)
    return Kept(config.pd.batch_size, two.record - one.record, two.ci - one.ci, terms, ascents)


def _kept(experiment: Experiment) -> Kept:
    """As it is, with what a recomputed layer or forward holds while it is gone through."""
    problem = experiment.problem
    found = _kept_as_is(experiment)
    if not (problem.remat or problem.remat_layers):
        return found
    whole = _kept_as_is(replace(experiment, problem=replace(problem, remat=False, remat_layers=False)))
    layers = 1 if problem.remat else max(1, _layers_run(experiment))

    def again(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
        return {name: min(b[name], size + -(-b[name] // layers)) for name, size in a.items()}

    return replace(found, terms=again(found.terms, whole.terms), ascents=again(found.ascents, whole.ascents))


def _layers_run(experiment: Experiment) -> int:
    """Layers of a masked forward: those before the first decomposed one are taken from the clean forward."""
    depth = sum(layers.depth for layers in layers_of(experiment.target))
    if not experiment.problem.reuse_prefix:
        return depth
    firsts = [site.span.first for site in experiment.problem.sites if site.span is not None]
    for site in experiment.problem.sites:
        for layers in layers_of(experiment.target):
            number = site.name.removeprefix(f"{layers.prefix}.").partition(".")[0]
            firsts += [int(number)] if site.name.startswith(f"{layers.prefix}.") and number.isdecimal() else []
    return depth - min(firsts, default=0)


def _kept_as_is(experiment: Experiment) -> Kept:
    problem, state = experiment.problem, state_template(experiment)
    number, seed = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)
    batch = batch_template(experiment)

    def size(of: Callable[[Target, TrainState, Array, Array, Array], object]) -> int:
        made = jax.eval_shape(of, experiment.target, state, batch, number, seed)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(made) if x.dtype.itemsize)

    def record(target: Target, state: TrainState, batch: Array, step: Array, seed: Array) -> object:
        scene, inputs = clean_scene(problem, target, state.decomposition.components, batch)
        return scene.clean, inputs, scene.resume

    def ci(target: Target, state: TrainState, batch: Array, step: Array, seed: Array) -> object:
        own = state.decomposition
        _, inputs = clean_scene(problem, target, own.components, batch)
        return jax.vjp(lambda f, v: importances(problem, f, v, inputs, step, seed), own.ci_fn, own.components)[1]

    def of_term(term: ReconTerm, ascent: bool) -> int:
        def pull(target: Target, state: TrainState, batch: Array, step: Array, seed: Array) -> object:
            own = state.decomposition
            scene, inputs = clean_scene(problem, target, own.components, batch)
            found = importances(problem, own.ci_fn, own.components, inputs, step, seed)
            weights = frozen_weights(target, batch, problem.sites)
            stored = {n: state.training.adversaries[n].sources for n in persistent_terms([term])}
            if ascent:
                return jax.vjp(lambda s: persistent_loss(term, scene, found.lower, s), stored[term.name])[1]

            def loss(components: ComponentSet, lower: dict[str, Array], own: dict[str, Sources]) -> Array:
                live = clean_scene(problem, target, components, batch)[0]
                live = replace(scene, components=live.components)
                given = replace(found, lower=lower)
                return total_loss([term], live, components, weights, given, own, step, problem.steps, seed)[0]

            return jax.vjp(loss, own.components, found.lower, stored)[1]

        return size(pull)

    terms = [term for term in problem.terms if isinstance(term, ReconTerm)]
    ascending = [term for term, spec in persistent_terms(problem.terms).values() if spec.n_warmup_steps]
    return Kept(
        examples=experiment.config.pd.batch_size,
        record=size(record),
        ci=size(ci),
        terms={term.name: of_term(term, ascent=False) for term in terms},
        ascents={term.name: of_term(term, ascent=True) for term in ascending},
    )
