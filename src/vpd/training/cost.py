"""Operations of one training step by part, counted from shapes: multiply-add is 2, elementwise work is not counted.

With a_s = 2 N d_in d_out (frozen product) and q_s = 2 N C (d_in + d_out) (component product) of a site, A and Q their
sums over the sites, N positions, R main forwards and K ascents, all sites live and δ on, a step takes

    A (1 + 2R + 2K) + Q (3R + 2K) + CI function + 6 Σ d_in C d_out + 15 parameters

less the gradients of inputs that nothing trained precedes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
from jaxtyping import Array

from vpd.decomposition import AllRouting, Site, members_in_order
from vpd.decomposition.stacks import SiteKind
from vpd.importance import GlobalMLP, LayerwiseMLP, TransformerCI
from vpd.importance.mlp import SiteMLP, lookups_of
from vpd.objective import Faithfulness, FreshPGD, Persistent, ReconTerm
from vpd.objective.recon import Constant, live_groups
from vpd.targets.layers import Resume
from vpd.training.optimizers import Muon, split_matrices
from vpd.training.state import Decomposition
from vpd.training.step import Problem

OPTIMIZER_OPERATIONS = 15
# Of language models: matrices of a layer that read the same activation, and those that read what attention mixes.
READ_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
READS_ATTENTION = (".o_proj", ".attn.c_proj")

Matrices = Mapping[str, tuple[int, int, SiteKind]]


@dataclass(frozen=True)
class Trained:
    """What is trained, in numbers of array entries.

    Attributes:
        components: entries of V and U, tied ones once.
        ci_fn: all parameters of the CI function.
        ci_weights: those that multiply, each once per position.
        ci_input_weights: of these, the ones whose input needs no gradient, because nothing trained precedes it.
        reads_components: whether the CI function reads ``x @ V``, as the gates do.
        ci_attention: multiply-adds of the CI function's attention for each position and position attended to.
        components_orthogonalised: multiply-adds of one Newton-Schulz iteration on the matrices among V and U.
        ci_fn_orthogonalised: likewise for the CI function.
    """

    components: int
    ci_fn: int
    ci_weights: int
    ci_input_weights: int
    reads_components: bool
    ci_attention: int = 0
    components_orthogonalised: int = 0
    ci_fn_orthogonalised: int = 0


def trained_sizes(decomposition: Decomposition) -> Trained:
    """The sizes of a decomposition, abstract or real.

    Raises:
        NotImplementedError: a CI function whose operations are not known here.
    """
    ci_fn = decomposition.ci_fn
    attention = 0
    match ci_fn:
        case LayerwiseMLP():
            networks = [_layers(mlp) for mlp in ci_fn.sites.values()]
            first = (
                []
                if ci_fn.fn_type == "mlp"
                else [_layers(m)[0] for s, m in ci_fn.sites.items() if s not in ci_fn.lookups]
            )
        case GlobalMLP():
            networks = [_layers(ci_fn.mlp)]
            first = [] if lookups_of(ci_fn.sites) else [networks[0][0]]
        case TransformerCI(networks=stacked):
            blocks = stacked.blocks
            networks = [[stacked.embed.W, blocks.q, blocks.k, blocks.v, blocks.o, *_layers(blocks.mlp), stacked.head.W]]
            first = [] if lookups_of(ci_fn.sites) else [stacked.embed.W]
            # Scores and the mix of values take d_model multiply-adds each.
            attention = 2 * math.prod(blocks.q.shape[:-1])
        case _:
            raise NotImplementedError(f"operations of a {type(ci_fn).__name__} are not counted")
    return Trained(
        components=_entries(decomposition.components),
        ci_fn=_entries(ci_fn),
        ci_weights=_entries(networks),
        ci_input_weights=_entries(first),
        reads_components=isinstance(ci_fn, LayerwiseMLP) and ci_fn.fn_type == "mlp",
        ci_attention=attention,
        components_orthogonalised=_newton_schulz(decomposition.components),
        ci_fn_orthogonalised=_newton_schulz(ci_fn),
    )


def _newton_schulz(tree: object) -> int:
    """``X Xᵀ``, its square, and their product with X for every matrix, the shorter side first."""
    total = 0
    for matrix in jax.tree.leaves(split_matrices(tree)[0]):
        *stack, rows, columns = matrix.shape
        short, long = sorted((rows, columns))
        total += math.prod(stack) * (2 * short**2 * long + short**3)
    return total


def _entries(tree: object) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _layers(mlp: SiteMLP) -> list[Array | jax.ShapeDtypeStruct]:
    """The weight of each layer."""
    return [layer.W for layer in (*mlp.hidden, mlp.out)]


def step_operations(
    problem: Problem,
    matrices: Matrices,
    trained: Trained,
    positions: int,
    sequence: int = 1,
    resume: Resume | None = None,
) -> dict[str, int]:
    """Operations of one step with every term active, by part; their sum is the step's.

    Rematerialised work is not counted. Matrices are taken to follow each other, but for those that read the same
    activation: what precedes the first live one, or lies beside it, needs no gradient of its input.

    Args:
        problem: the static part of training.
        matrices: of the target in the order of its forward pass, ``{name: (d_in, d_out, kind)}``.
        trained: sizes of what is trained.
        positions: in the global batch.
        sequence: positions that attend to each other; 1 without a sequence axis.
        resume: where masked forwards begin; abstract or real.

    Returns:
        ``clean``, ``ci forward``, ``ci backward``, ``faithfulness``, ``optimizers``, and for each recon term
        ``<name> forward``, ``<name> backward`` and, where it has an adversary, ``<name> ascents``.
    """
    single = tuple(replace(site, name=name, span=None) for site, _, name in members_in_order(problem.sites))
    pass_ = _Pass(single, matrices, positions, sequence, skipped_matrices(matrices, resume))
    parts = {"clean": pass_.clean()} | _ci_function(problem.sites, trained, positions, sequence)
    for term in problem.terms:
        match term:
            case ReconTerm():
                parts |= _recon(term, pass_, problem.use_delta)
            case Faithfulness():
                parts["faithfulness"] = 6 * sum(s.d_in * s.C * s.d_out for s in single)
            case _:
                pass
    groups = (
        (problem.components_optimizer, trained.components, trained.components_orthogonalised),
        (problem.ci_fn_optimizer, trained.ci_fn, trained.ci_fn_orthogonalised),
    )
    parts["optimizers"] = sum(OPTIMIZER_OPERATIONS * entries for _, entries, _ in groups)
    parts["optimizers"] += sum(2 * rule.ns_steps * once for rule, _, once in groups if isinstance(rule, Muon))
    return parts


def _ci_function(sites: tuple[Site, ...], trained: Trained, positions: int, sequence: int) -> dict[str, int]:
    inner = 2 * positions * sum(site.depth * _inner(site) for site in sites) if trained.reads_components else 0
    forward = 2 * positions * (trained.ci_weights + sequence * trained.ci_attention)
    backward = 2 * forward - 2 * positions * trained.ci_input_weights
    # Site inputs are constant: x @ V passes its gradient to V alone.
    return {"ci forward": forward + inner, "ci backward": backward + inner}


def _inner(site: Site) -> int:
    """Multiply-adds of ``x @ V`` at one position; an embedding looks its row up."""
    return 0 if site.kind == "embedding" else site.d_in * site.C


def _frozen(d_in: int, d_out: int, kind: SiteKind) -> int:
    """Multiply-adds of ``x @ W`` at one position; only a linear site has any."""
    return d_in * d_out if kind == "linear" else 0


def _recon(term: ReconTerm, pass_: "_Pass", use_delta: bool) -> dict[str, int]:
    constant = isinstance(term.source, Constant)
    routed = not isinstance(term.routing, AllRouting)
    blends = routed or (use_delta and not constant)
    forward = backward = ascents = 0
    for group in live_groups(term, pass_.sites):
        live = {site.name for site in group}
        one, gradients, sources = pass_.forward(live, blends), pass_.backward(live, blends), pass_.ascent(live, blends)
        forward += term.n_samples * one
        backward += term.n_samples * gradients
        if isinstance(term.source, FreshPGD):
            ascents += term.n_samples * term.source.n_steps * (one + sources)
    parts = {f"{term.name} forward": forward, f"{term.name} backward": backward}
    if isinstance(term.source, Persistent):
        # Warm-up ascents see all sites at all positions.
        live = {site.name for site in pass_.sites}
        once = pass_.forward(live, use_delta) + pass_.ascent(live, use_delta)
        ascents = term.source.n_warmup_steps * once
    if isinstance(term.source, FreshPGD | Persistent):
        parts[f"{term.name} ascents"] = ascents
    return parts


def beside(name: str) -> set[str]:
    """The matrices of the same layer that read what this one reads."""
    for group in READ_TOGETHER:
        for last in group:
            if name.endswith(f".{last}"):
                return {name.removesuffix(last) + other for other in group}
    return {name}


def skipped_matrices(matrices: Matrices, resume: Resume | None) -> frozenset[str]:
    """The matrices that a masked forward takes from the clean one."""
    if resume is None:
        return frozenset()
    order, path = list(matrices), f"{resume.prefix}.{resume.first}."
    own = [name for name in order if name.startswith(path)]
    # A layer has two parts, attention and MLP.
    mlp = next(name for name in own if ".mlp." in name)
    begin = mlp if resume.part else own[0]
    return frozenset(order[: order.index(begin)])


@dataclass(frozen=True)
class _Pass:
    """One pass through the target with some sites live; ``blends`` tells whether live sites also need ``x @ W``."""

    sites: tuple[Site, ...]
    matrices: Matrices
    positions: int
    sequence: int = 1
    skipped: frozenset[str] = frozenset()

    def clean(self) -> int:
        frozen = sum(_frozen(*shape) + self._attention(name) for name, shape in self.matrices.items())
        return 2 * self.positions * frozen

    def forward(self, live: set[str], blends: bool) -> int:
        made = [name for name in self.matrices if name not in self.skipped]
        products = sum(_inner(s) + s.C * s.d_out for s in self._live(live))
        frozen = sum(_frozen(*self.matrices[name]) for name in made if blends or name not in live)
        return 2 * self.positions * (products + frozen + sum(self._attention(name) for name in made))

    def backward(self, live: set[str], blends: bool) -> int:
        """Gradients of V and U (each as much as its product), and all that an ascent needs."""
        weights = sum(_inner(s) + s.C * s.d_out for s in self._live(live))
        return 2 * self.positions * weights + self.ascent(live, blends)

    def ascent(self, live: set[str], blends: bool) -> int:
        """Gradients of the masks, and of every input after the first live site."""
        masks = sum(s.C * s.d_out for s in self._live(live))
        after = self._after_first(live)
        inputs = sum(_inner(s) for s in self._live(live & after))
        frozen = sum(_frozen(*self.matrices[name]) for name in after if blends or name not in live)
        # Of scores and of mixed values, the gradients of both factors.
        attention = sum(2 * self._attention(name) for name in after)
        return 2 * self.positions * (masks + inputs + frozen + attention)

    def _attention(self, name: str) -> int:
        """Multiply-adds at one position of the attention whose mixed values a matrix reads: scores, and the mix."""
        return 2 * self.sequence * self.matrices[name][0] if name.endswith(READS_ATTENTION) else 0

    def _live(self, names: set[str]) -> list[Site]:
        return [site for site in self.sites if site.name in names]

    def _after_first(self, live: set[str]) -> set[str]:
        order = list(self.matrices)
        first = min(order.index(name) for name in live)
        return set(order[first + 1 :]) - beside(order[first])
