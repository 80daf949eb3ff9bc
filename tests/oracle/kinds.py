"""What the project computes for each kind of case that is not a trajectory: ``{name: array}``."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from case import Case

from vpd.analysis.clustering.cost import description_length, merge_costs
from vpd.analysis.clustering.frontier import Frontier
from vpd.analysis.clustering.groups import Groups
from vpd.analysis.clustering.memberships import from_dense
from vpd.analysis.clustering.merging import merge_all, merge_cost
from vpd.analysis.clustering.samplers import lowest_pair
from vpd.analysis.harvest.correlations import pair_statistics, token_statistics
from vpd.analysis.harvest.one_pass import Seen
from vpd.analysis.harvest.settings import Settings
from vpd.analysis.harvest.totals import Totals
from vpd.decomposition import Components, ComponentSet, Site, SiteMask, masked_site
from vpd.evaluation.identity import dense_error, identity_error
from vpd.evaluation.l0 import count_active, group_sites
from vpd.importance import GlobalMLP, LayerwiseMLP, TransformerCI
from vpd.importance.mlp import Affine, SiteMLP
from vpd.importance.squash import SQUASHINGS
from vpd.importance.transformer import Block, Transformer
from vpd.objective import (
    AdamAscent,
    AdversaryState,
    FreshPGD,
    ImportanceMinimality,
    ReconTerm,
    Scene,
    Schedule,
    SignAscent,
    anneal,
    ascend,
    effective_sources,
    faithfulness_loss,
)
from vpd.objective.minimality import Anneal
from vpd.objective.recon import forward_divergence, fresh_pgd
from vpd.targets import clean_forward

SCOPES = {
    "single_source": "c",
    "shared_across_batch": "c",
    "broadcast_across_batch": "sc",
    "repeat_across_batch": "nsc",
    "per_batch_per_position": "bsc",
    "unique_per_datapoint": "bsc",
}


def scope_of(name: str, leading: list[int]) -> str:
    """The present name of a scope; without a sequence axis sc and bsc are c and bc."""
    scope = SCOPES.get(name, name)
    return scope if len(leading) > 1 else {"sc": "c", "bsc": "bc"}.get(scope, scope)


def sigmoid(case: Case) -> dict:
    """Values and vector-Jacobian products of every squashing."""
    got = {}
    for name in case.config["functions"]:
        value, pull = jax.vjp(SQUASHINGS[name], case["z"])
        got |= {f"value/{name}": value, f"dz/{name}": pull(case["g"])[0]}
    return got


def site_forward(case: Case) -> dict:
    """One masked site and its gradients."""
    site_type = case.config["site_type"]
    kind = site_type if site_type in ("embedding", "identity") else "linear"
    routing = case["routing"] if "routing" in case.inputs else None
    bias = case["bias"] if "bias" in case.inputs else None
    names = [
        n for n in ("V", "U", "mask", "delta_mask", "x") if n in case.inputs and not (n == "x" and kind == "embedding")
    ]

    def forward(values: dict) -> jnp.ndarray:
        x = values.get("x", case["x"] if kind == "embedding" else None)
        mask = SiteMask(values["mask"], values.get("delta_mask"), routing)
        weight = None if kind == "identity" else case["W"]
        return masked_site(x, weight, Components(values["V"], values["U"]), mask, bias, kind)

    y, pull = jax.vjp(forward, {n: case[n] for n in names})
    return {"y": y} | {f"grad/{n}": g for n, g in pull(case["cot"])[0].items()}


def faithfulness(case: Case) -> dict:
    """The loss and its gradients."""
    W = case.tree("W/")
    sites = [Site(s, *w.shape, C=case[f"V/{s}"].shape[1]) for s, w in W.items()]
    owned = {s: Components(case[f"V/{s}"], case[f"U/{s}"]) for s in W}
    loss, grads = jax.value_and_grad(lambda c: faithfulness_loss(sites, W, ComponentSet(c)))(owned)
    got = {"loss": loss}
    for s, g in grads.items():
        got |= {f"grad/V/{s}": g.V, f"grad/U/{s}": g.U}
    return got


def importance_minimality(case: Case) -> dict:
    """Loss, β-free loss, annealed exponent, gradients; with the exponent as a constant and as a traced value."""
    c = case.config
    p = Anneal(c["pnorm"], c["p_anneal_final_p"], c["p_anneal_start_frac"], c["p_anneal_end_frac"])
    penalty = ImportanceMinimality(p, c["beta"], c["eps"])
    upper = case.tree("ci_upper/")
    N = int(np.prod(c["leading"]))

    @jax.jit
    def run(upper: dict, fraction: jnp.ndarray) -> tuple:
        return jax.value_and_grad(lambda u: penalty.loss(penalty.sums(u, fraction), N), has_aux=True)(upper)

    (loss, plain), grads = run(upper, jnp.float32(c["fraction_of_training"]))
    got = {"p": anneal(p, c["fraction_of_training"]), "loss": loss, "loss_no_beta": plain}
    return got | {f"grad/ci_upper/{s}": g for s, g in grads.items()}


def _affine(case: Case, prefix: str) -> Affine:
    return Affine(case[f"{prefix}/W"], case[f"{prefix}/b"])


def site_mlp(case: Case, prefix: str, hidden: int) -> SiteMLP:
    """The layers recorded below a prefix."""
    return SiteMLP(tuple(_affine(case, f"{prefix}/hidden{i}") for i in range(hidden)), _affine(case, f"{prefix}/out"))


def flatten_mlp(mlp: SiteMLP, prefix: str) -> dict:
    """The inverse of :func:`site_mlp`."""
    layers = {f"hidden{i}": layer for i, layer in enumerate(mlp.hidden)} | {"out": mlp.out}
    return {f"{prefix}/{n}/{p}": getattr(layer, p) for n, layer in layers.items() for p in ("W", "b")}


def transformer(case: Case, sites: tuple[Site, ...]) -> TransformerCI:
    """The recorded transformer: blocks stacked, in a stack of one network."""
    c = case.config
    if "pd" in c:
        size = c["pd"]["ci_config"]["simple_transformer_ci_cfg"]
        c = size | size["attn_config"]

    def block(prefix: str) -> Block:
        hidden = tuple(_affine(case, f"{prefix}/mlp_hidden{j}") for j in range(len(c["mlp_hidden_dim"])))
        mlp = SiteMLP(hidden, _affine(case, f"{prefix}/mlp_out"))
        return Block(*(case[f"{prefix}/{name}"] for name in "qkvo"), mlp=mlp)

    blocks = jax.tree.map(lambda *x: jnp.stack(x), *(block(f"ci/block{i}") for i in range(c["n_blocks"])))
    network = Transformer(_affine(case, "ci/in"), blocks, _affine(case, "ci/out"), c["n_heads"], c["rope_base"])
    one = jax.tree.map(lambda x: x[None], network)
    return TransformerCI(one, sites, None, 2048)


def flatten_transformer(fn: TransformerCI, prefix: str) -> dict:
    """The inverse of :func:`transformer`."""
    network = jax.tree.map(lambda x: x[0], fn.networks)
    named = {f"in/{p}": getattr(network.embed, p) for p in ("W", "b")}
    named |= {f"out/{p}": getattr(network.head, p) for p in ("W", "b")}
    for i in range(network.blocks.q.shape[0]):
        block = jax.tree.map(lambda x, i=i: x[i], network.blocks)
        named |= {f"block{i}/{name}": getattr(block, name) for name in "qkvo"}
        layers = {f"mlp_hidden{j}": layer for j, layer in enumerate(block.mlp.hidden)} | {"mlp_out": block.mlp.out}
        named |= {f"block{i}/{n}/{p}": getattr(layer, p) for n, layer in layers.items() for p in ("W", "b")}
    return {f"{prefix}/{name}": value for name, value in named.items()}


def in_order(case: Case) -> tuple[Site, ...]:
    """The sites in the recorded order of concatenation."""
    named = {s["name"]: s for s in case.config["sites"]}

    def site(name: str) -> Site:
        x, kind = case[f"x/{name}"], named[name]["type"]
        lookup = kind == "embedding"
        return Site(name, 1 if lookup else x.shape[-1], 1, named[name]["C"], "embedding" if lookup else "linear")

    return tuple(site(name) for name in case.config["site_order"])


def ci_fn(case: Case) -> dict:
    """Preactivations and gradients of the causal-importance functions."""
    c = case.config
    sites, hidden = c["sites"], len(c.get("hidden_dims", ()))
    lookups = frozenset(s["name"] for s in sites if s["type"] == "embedding")
    if c["fn_type"] == "global_shared_mlp":
        fn = GlobalMLP(site_mlp(case, "ci", hidden), in_order(case))
    elif c["fn_type"] == "global_shared_transformer":
        fn = transformer(case, in_order(case))
    else:
        networks = {s["name"]: site_mlp(case, f"ci/{s['name']}", hidden) for s in sites}
        fn = LayerwiseMLP(networks, c["fn_type"], lookups)
    floats = {s["name"]: case[f"x/{s['name']}"] for s in sites if s["name"] not in lookups}
    rows = {s: case[f"x/{s}"] for s in lookups}
    V = {s["name"]: case.arrays.get(f"V/{s['name']}", np.zeros((s["d_in"], s["C"]), np.float32)) for s in sites}

    def forward(fn, floats: dict, V: dict) -> dict:
        owned = {s: Components(v, jnp.zeros((v.shape[1], 1))) for s, v in V.items()}
        return fn({s["name"]: (floats | rows)[s["name"]] for s in sites}, ComponentSet(owned))

    pre, pull = jax.vjp(forward, fn, floats, {s: jnp.asarray(v) for s, v in V.items()})
    g_fn, g_x, g_V = pull({s: case[f"cot/{s}"] for s in pre})
    got = {f"pre/{s}": z for s, z in pre.items()}
    got |= {f"grad/x/{s}": g for s, g in g_x.items()} | {f"grad/V/{s}": g for s, g in g_V.items()}
    if isinstance(g_fn, GlobalMLP):
        return got | flatten_mlp(g_fn.mlp, "grad/ci")
    if isinstance(g_fn, TransformerCI):
        return got | flatten_transformer(g_fn, "grad/ci")
    for s, g in g_fn.sites.items():
        got |= flatten_mlp(g, f"grad/ci/{s}")
    return got


def schedule(case: Case) -> dict:
    """Values on the host in float64; the program's own float32 values agree with them."""
    got = {}
    for i, c in enumerate(case.config["schedules"]):
        spec = Schedule(**{k: v for k, v in c.items() if k != "total_steps"})
        total = c["total_steps"]
        got[f"values/{i}"] = np.array([spec.on_host(t, total) for t in range(total + 1)])
        traced = jax.vmap(lambda t, spec=spec, total=total: spec(t, total))(jnp.arange(total + 1))
        np.testing.assert_allclose(traced, got[f"values/{i}"], rtol=1e-5, atol=1e-6 * spec.start_val)
    return got


def ascent_of(optimizer: dict) -> AdamAscent | SignAscent:
    """The ascent that a recorded optimizer block describes."""
    if optimizer["type"] == "sign":
        return SignAscent()
    return AdamAscent(*(optimizer[k] for k in ("beta1", "beta2", "eps")))


def adam_sources(case: Case) -> dict:
    """Sources and moments after each of several ascents."""
    optimizer = ascent_of(case.config["optimizer"])
    squashed = case.config["parameterisation"] == "sigmoid"
    sources = case.tree("sources0/")
    zeros = {s: jnp.zeros_like(x) for s, x in sources.items()} if isinstance(optimizer, AdamAscent) else {}
    state = AdversaryState(sources, zeros, dict(zeros), jnp.zeros((), jnp.int32))
    rows: dict[str, list] = {}
    for i in range(case.config["n_steps"]):
        gradients = {s: g[i] for s, g in case.tree("grads/").items()}
        state = ascend(state, gradients, case["lrs"][i], optimizer, squashed)
        after = {
            "sources": state.sources,
            "effective": effective_sources(state.sources, squashed),
            "m": state.m,
            "v": state.v,
        }
        for what, values in after.items():
            for s, x in values.items():
                rows.setdefault(f"{what}/{s}", []).append(x)
    return {name: np.stack(values) for name, values in rows.items()}


class TwoLayers:
    """The two-layer target of the ``pgd`` cases."""

    def __init__(self, case: Case) -> None:
        """Weights and biases of fc1 and fc2."""
        self.case = case
        activations = {"relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}
        self.activation = activations[case.config["activation"]]

    def forward(self, batch, seam):
        """``act(x W1 + b1) W2 + b2``."""
        h = self.activation(seam("fc1", batch, self.case["W/fc1"], self.case["b/fc1"]))
        return seam("fc2", h, self.case["W/fc2"], self.case["b/fc2"])

    def divergence(self, clean, masked):
        """Mean squared error per position."""
        return jnp.mean((clean - masked) ** 2, axis=-1)

    def matrices(self) -> dict:
        """Both layers."""
        return {s: (*self.case[f"W/{s}"].shape, "linear") for s in ("fc1", "fc2")}


def pgd(case: Case) -> dict:
    """Sources after each ascent, the losses there, and the gradients of the final loss."""
    c = case.config
    target = TwoLayers(case)
    names = c["sites"]
    sites = tuple(Site(s, *case[f"W/{s}"].shape, C=c["C"][s]) for s in names)
    attack = FreshPGD(c["init"], c["step_size"], c["n_steps"], scope_of(c["mask_scope"], c["leading"]))
    term = ReconTerm("PGDReconLoss", 1.0, attack)
    routes = {s: case[f"routing/{s}"] if c["routing"] else None for s in names}
    clean, _ = clean_forward(target, case["x"])

    def scene(components: ComponentSet) -> Scene:
        return Scene(target, components, case["x"], clean, sites, tuple(c["leading"]), c["use_delta_component"])

    components = ComponentSet({s: Components(case[f"V/{s}"], case[f"U/{s}"]) for s in names})
    ci = {s: case[f"ci/{s}"] for s in names}
    after: list[dict] = []
    key = jax.random.key(0)
    start = case.tree("sources0/")
    sources = fresh_pgd(attack, term, scene(components), ci, sites, routes, key, start, after.append)
    looped = fresh_pgd(attack, term, scene(components), ci, sites, routes, key, start)
    for s in names:
        np.testing.assert_array_equal(sources[s], looped[s])

    def loss_at(components: ComponentSet, ci: dict, sources: dict) -> jnp.ndarray:
        fixed = FreshPGD(c["init"], c["step_size"], 0, attack.scope)
        return forward_divergence(ReconTerm("PGDReconLoss", 1.0, fixed), scene(components), ci, sources, routes)

    loss, (g_components, g_ci) = jax.value_and_grad(loss_at, (0, 1))(components, ci, sources)
    got = {"clean_out": clean, "loss": loss}
    got["loss_after_steps"] = np.stack([loss_at(components, ci, s) for s in after])
    for s in names:
        got |= {f"sources/{s}": sources[s], f"sources_after_steps/{s}": np.stack([a[s] for a in after])}
        got |= {
            f"grad/V/{s}": g_components.owned[s].V,
            f"grad/U/{s}": g_components.owned[s].U,
            f"grad/ci/{s}": g_ci[s],
        }
    return got


def ci_l0(case: Case) -> dict:
    """Mean counts per site and group over batches."""
    c = case.config
    groups = group_sites(c["sites"], c["groups"] or {})
    counts = {
        s: float(np.mean([float(count_active(batch, c["ci_alive_threshold"])) for batch in case[f"ci/{s}"]]))
        for s in c["sites"]
    }
    got = {f"l0/{s}": value for s, value in counts.items()}
    return got | {f"l0/{g}": sum(counts[s] for s in members) for g, members in groups.items()}


def identity_ci_error(case: Case) -> dict:
    """Errors per site at the first tolerance, and totals at each."""
    c = case.config
    errors: dict[str, int] = {}
    for total, tolerance in c["tolerances"].items():
        at = {
            e["layer_pattern"]: identity_error(case.arrays[f"ci/{e['layer_pattern']}"], tolerance)
            for e in c["identity_ci"]
        }
        at |= {
            e["layer_pattern"]: dense_error(case.arrays[f"ci/{e['layer_pattern']}"], e["k"], tolerance)
            for e in c["dense_ci"]
        }
        errors |= {f"error/{total}": sum(at.values())}
        if total == "total":
            errors |= {f"error/{s}": e for s, e in at.items()}
    return errors


def harvest_stats(case: Case) -> dict:
    """Counts, masses and statistics of recorded importances, activations and output distributions."""
    c = case.config
    names = [site["name"] for site in c["sites"]]
    joined = {what: np.concatenate([case[f"{what}/{s}"] for s in names], axis=-1) for what in ("ci", "act", "u_norm")}
    n, vocab, (rows, length) = joined["ci"].shape[-1], c["vocab_size"], c["leading"]
    settings = Settings(0, "eval", rows, c["n_batches"], length, c["firing_threshold"], 0, 2, 2, 1, 1, None, vocab)
    with tempfile.TemporaryDirectory() as scratch:
        totals = Totals(settings, n, length, Path(scratch))
    tokens, chances = (np.asarray(case[name]) for name in ("tokens", "output_probs"))
    for i in range(c["n_batches"]):
        act = jnp.asarray(joined["act"][i] * joined["u_norm"])
        size = jnp.where(joined["ci"][i] > c["firing_threshold"], jnp.abs(act), -1.0)
        peaks, places = size.max(axis=1), size.argmax(axis=1)
        seen = Seen(jnp.asarray(joined["ci"][i]), act, peaks, places, jnp.asarray(chances[i].reshape(-1, vocab)))
        totals.add(i, tokens[i], seen)
    assert totals.tokens is not None
    N, n_i, pairs = totals.positions, totals.firing, totals.cofiring.matrix().toarray()
    got = {
        "total_tokens": np.asarray(N),
        "firing_counts": n_i,
        "firing_density": n_i / N,
        "mean_causal_importance": totals.importance / N,
        "mean_component_activation": totals.activation / N,
        "cofiring_counts": pairs,
    }
    apart = np.where(np.eye(n, dtype=bool), 0, pairs)
    for name, value in pair_statistics(apart, n_i[:, None], n_i[None], N)._asdict().items():
        got[f"corr/{name}"] = value
    sums = {
        "input": (totals.tokens.inputs.matrix().toarray(), totals.tokens.input_totals),
        "output": (totals.tokens.mass, totals.tokens.output_totals),
    }
    for side, (mass, total) in sums.items():
        got |= {f"{side}_token_{'counts' if side == 'input' else 'mass'}": mass, f"{side}_token_totals": total}
        for name, value in token_statistics(mass, n_i[:, None], total[None], N)._asdict().items():
            got[f"{side}_token_{name}"] = value
    return got


def coactivation_merge(case: Case) -> dict:
    """Counts, costs of all pairs, the chosen one and the groups at every step of the greedy merge."""
    alpha, fires = case.config["alpha"], from_dense(np.asarray(case["activations"]))
    together, n, rng = fires.coactivation(), fires.n, np.random.default_rng(0)
    groups = Groups(fires, together)
    frontier, history = Frontier(groups, alpha), merge_all(fires, alpha)
    got = {
        "coactivation": together,
        "mdl_initial": np.asarray(history.initial),
        "costs": np.full((n - 1, n, n), np.nan),
        "pairs": np.zeros((n - 1, 2), np.int64),
        "pair_cost": np.zeros(n - 1),
        "group_idxs": np.zeros((n - 1, n), np.int64),
        "coactivation_after": np.full((n - 1, n, n), -1),
        "mdl_after": np.zeros(n - 1),
    }
    for t in range(n - 1):
        k = groups.k
        got["costs"][t, :k, :k] = merge_costs(groups.counts(), groups.sizes(), fires.positions, alpha)
        a, b = lowest_pair(frontier, rng)
        got["pairs"][t] = np.searchsorted(groups.alive, [a, b])
        got["pair_cost"][t] = merge_cost(groups, a, b, alpha)
        frontier.merge(a, b)
        got["group_idxs"][t] = np.unique(history.groups(t + 1), return_inverse=True)[1]
        got["coactivation_after"][t, : k - 1, : k - 1] = groups.counts()
        active, sizes = np.diagonal(groups.counts()), groups.sizes()
        got["mdl_after"][t] = description_length(active, sizes, fires.positions, alpha)
    np.testing.assert_allclose(history.lengths[1:], got["mdl_after"], rtol=1e-9)
    return got
