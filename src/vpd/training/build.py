"""From a run file to the static problem and its first state."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vpd.config.checks import check_riders
from vpd.config.run import PD
from vpd.config.schedule import Optimizer as NamedOptimizer
from vpd.config.sites import match_sites
from vpd.decomposition import Site, init_components
from vpd.importance.build import init_ci_function
from vpd.objective import Weights, init_adversary
from vpd.objective.adversary import source_shapes
from vpd.objective.build import schedule_from, terms_from
from vpd.objective.total import persistent_terms
from vpd.randomness import stream
from vpd.targets import Target
from vpd.targets.base import pre_identity, with_identities
from vpd.training.optimizers import AdamW, Muon
from vpd.training.state import Decomposition, Training, TrainState
from vpd.training.step import Problem


def sites_from(pd: PD, target: Target) -> tuple[Site, ...]:
    """The decomposed matrices of a target in numeric layer order, each with its C, after its inserted identity."""
    matrices = target.matrices()
    chosen = match_sites(pd.decomposition_targets, tuple(matrices))
    vectors = tuple(name for name, (_, _, kind) in matrices.items() if kind == "linear")
    identities = match_sites(pd.identity_decomposition_targets or (), vectors, "pd.identity_decomposition_targets")
    chosen |= {pre_identity(name): C for name, C in identities.items()}
    return tuple(
        Site(name, d_in, d_out, chosen[name], kind)
        for name, (d_in, d_out, kind) in with_identities(matrices).items()
        if name in chosen
    )


def optimizer_from(config: NamedOptimizer) -> AdamW | Muon:
    """The optimizer of one group."""
    settings = schedule_from(config.lr_schedule), config.betas, config.weight_decay, config.grad_clip_norm
    return Muon(*settings, config.ns_steps) if config.type == "muon" else AdamW(*settings)


def problem_from(
    pd: PD, sites: Sequence[Site], has_sequence: bool, bfloat16: bool = False, remat: bool = False
) -> Problem:
    """All that is static about a run; ConfigError where a rider names none of the sites."""
    check_riders(pd.loss_metrics, [site.name for site in sites])
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
