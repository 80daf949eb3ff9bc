"""From a run file to the static problem and its first state."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

import jax
import jax.numpy as jnp

from vpd.config.checks import check_riders
from vpd.config.run import PD
from vpd.config.schedule import Optimizer as NamedOptimizer
from vpd.config.sites import match_sites
from vpd.decomposition import Site, Span, init_components, members_in_order
from vpd.importance.build import init_ci_function
from vpd.objective import Weights, init_adversary
from vpd.objective.adversary import source_shapes
from vpd.objective.build import schedule_from, terms_from
from vpd.objective.total import persistent_terms
from vpd.randomness import stream
from vpd.targets import Target
from vpd.targets.base import pre_identity, with_identities
from vpd.targets.layers import Layers, layers_of, with_cuts
from vpd.training.optimizers import AdamW, Muon
from vpd.training.state import Decomposition, Training, TrainState
from vpd.training.step import Problem

Tree = TypeVar("Tree")


def sites_from(pd: PD, target: Target, ties: Sequence[tuple[str, str]] = ()) -> tuple[Site, ...]:
    """The decomposed matrices of a target in numeric layer order, each with its C, after its inserted identity.

    Those of consecutive layers that are decomposed alike are one stack; tied ones stay single.
    """
    matrices = target.matrices()
    chosen = match_sites(pd.decomposition_targets, tuple(matrices))
    vectors = tuple(name for name, (_, _, kind) in matrices.items() if kind == "linear")
    identities = match_sites(pd.identity_decomposition_targets or (), vectors, "pd.identity_decomposition_targets")
    chosen |= {pre_identity(name): C for name, C in identities.items()}
    flat = [
        Site(name, d_in, d_out, chosen[name], kind)
        for name, (d_in, d_out, kind) in with_identities(matrices).items()
        if name in chosen
    ]
    return stacked_sites(flat, layers_of(target), {site for pair in ties for site in pair})


def stacked_sites(flat: Sequence[Site], scanned: Sequence[Layers], alone: Collection[str] = ()) -> tuple[Site, ...]:
    """Equal sites of consecutive layers as stacks, where the target scans over them.

    Args:
        flat: single sites in numeric layer order.
        scanned: the target's layers.
        alone: sites that stay single.
    """
    sites = list(flat)
    for layers in scanned:
        own = [site for site in sites if layer_of(site, layers.prefix) is not None]
        if own:
            before, after = sites[: sites.index(own[0])], sites[sites.index(own[-1]) + 1 :]
            sites = [*before, *_stacks(own, layers, alone), *after]
    return tuple(sites)


def layer_of(site: Site, prefix: str) -> int | None:
    """The number of the layer that a single site lies in."""
    number = site.name.removeprefix(f"{prefix}.").partition(".")[0]
    return int(number) if site.name.startswith(f"{prefix}.") and number.isdecimal() else None


def _stacks(own: Sequence[Site], layers: Layers, alone: Collection[str]) -> list[Site]:
    by_layer: dict[int, list[Site]] = {i: [] for i in range(layers.depth)}
    for site in own:
        by_layer[layer_of(site, layers.prefix) or 0].append(site)

    def alike(i: int) -> object:
        local = tuple(replace(s, name=s.name.removeprefix(f"{layers.prefix}.{i}.")) for s in by_layer[i])
        return (i, local) if any(s.name in alone for s in by_layer[i]) else local

    found: list[Site] = []
    for _, run in groupby(range(layers.depth), key=alike):
        numbers = list(run)
        span = Span(layers.prefix, numbers[0], len(numbers))
        for site in by_layer[numbers[0]]:
            matrix = site.name.removeprefix(f"{layers.prefix}.{numbers[0]}.")
            found.append(site if span.depth == 1 else replace(site, name=f"{span}.{matrix}", span=span))
    return found


def cut_for(target: Tree, sites: Sequence[Site]) -> Tree:
    """The same target, its layers in runs that fit the stacks of sites."""

    def firsts(layers: Layers) -> set[int]:
        cuts: set[int] = set()
        for site in sites:
            if site.span is not None and site.span.prefix == layers.prefix:
                cuts |= {site.span.first, site.span.first + site.span.depth}
            elif site.span is None and (i := layer_of(site, layers.prefix)) is not None:
                cuts |= {i, i + 1}
        return cuts

    return with_cuts(target, firsts)


def optimizer_from(config: NamedOptimizer) -> AdamW | Muon:
    """The optimizer of one group."""
    settings = schedule_from(config.lr_schedule), config.betas, config.weight_decay, config.grad_clip_norm
    return Muon(*settings, config.ns_steps) if config.type == "muon" else AdamW(*settings)


def problem_from(
    pd: PD, sites: Sequence[Site], has_sequence: bool, bfloat16: bool = False, remat: bool = False
) -> Problem:
    """All that is static about a run; ConfigError where a rider names none of the sites."""
    check_riders(pd.loss_metrics, [name for _, _, name in members_in_order(sites)])
    return Problem(
        sites=tuple(sites),
        terms=terms_from(pd, has_sequence),
        components_optimizer=optimizer_from(pd.components_optimizer),
        ci_fn_optimizer=optimizer_from(pd.ci_fn_optimizer),
        steps=pd.steps,
        sigmoid_type=pd.sigmoid_type,
        sampling=pd.sampling,
        use_delta=pd.use_delta_component,
        compute_dtype="bfloat16" if bfloat16 else "float32",
        remat=remat,
    )


def init_state(
    problem: Problem, pd: PD, ties: Sequence[tuple[str, str]], leading: tuple[int, ...], weights: Weights | None = None
) -> TrainState:
    """The state before the first update, a function of the seed.

    Args:
        problem: the static part.
        pd: the run file's block.
        ties: pairs (owner, site) of tied sites.
        leading: shape of a training batch without its last axis.
        weights: frozen weights ``{site: [d_in, d_out]}``, which V and U start from with ``initialization: svd``.
    """
    assert pd.initialization == "normal" or weights is not None, "starting from the SVD needs the frozen weights"
    start = weights if pd.initialization == "svd" else None
    components = init_components(problem.sites, stream(pd.seed, "init/components"), ties, start)
    ci_fn = init_ci_function(pd.ci_config, problem.sites, stream(pd.seed, "init/ci_fn"))
    adversaries = {
        name: init_adversary(
            problem.sites,
            source_shapes(problem.sites, spec.scope, leading, problem.use_delta, spec.n_sources),
            stream(pd.seed, f"init/{name}"),
            spec.optimizer,
            spec.sigmoid,
        )
        for name, (_, spec) in persistent_terms(problem.terms).items()
    }
    training = Training(
        components_optimizer=problem.components_optimizer.init(components),
        ci_fn_optimizer=problem.ci_fn_optimizer.init(ci_fn),
        adversaries=adversaries,
        step=jnp.zeros((), jnp.int32),
    )
    # A copy of its own for every leaf: the step donates the state, and a buffer can be donated once.
    return jax.tree.map(jnp.copy, TrainState(Decomposition(components, ci_fn), training))
