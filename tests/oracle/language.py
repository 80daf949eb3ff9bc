"""Cases of the small language model: its forward, its masked losses, and whole training trajectories."""

from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from case import Case
from kinds import flatten_transformer, transformer

from vpd.config.run import PD
from vpd.decomposition import AllRouting, Components, ComponentSet, Site, SiteMask, dense, members_in_order, unstacked
from vpd.evaluation.maskings import as_metrics, masked_losses
from vpd.objective import AdversaryState, Scene, recon
from vpd.objective.total import persistent_terms
from vpd.targets import clean_forward, masked_site_outputs, recorded_forward
from vpd.targets.layers import Layers, layers_of
from vpd.targets.simple_mlp_lm import ATTENTION, LlamaSimpleMLP, SimpleLayer
from vpd.training.build import cut_for, problem_from, stacked_sites
from vpd.training.state import Decomposition, Training, TrainState
from vpd.training.step import Problem, step_gradients, train_step

MATRICES = {f"attn.{name}": name for name in ATTENTION} | {"mlp.c_fc": "c_fc", "mlp.down_proj": "down_proj"}


def target_of(case: Case) -> LlamaSimpleMLP:
    """The recorded network, its layers in one stack."""
    c = case.config["target"]
    names = {"rms_1": "rms_1", "rms_2": "rms_2"} | MATRICES
    stack = {
        field: jnp.stack([case[f"weights/h.{i}.{name}"] for i in range(c["n_layer"])]) for name, field in names.items()
    }
    layers = Layers((SimpleLayer(**stack),), "h")
    heads = (c["n_head"], c["n_kv_head"], float(c["rope_base"]), c["rms_norm_eps"])
    return LlamaSimpleMLP(case["weights/wte"], layers, case["weights/ln_f"], None, *heads)


def sites_of(case: Case, target: LlamaSimpleMLP) -> tuple[Site, ...]:
    """The decomposed matrices as the project holds them: stacks over layers."""
    C = {s["name"]: s["C"] for s in case.config["sites"]}
    flat = [Site(n, i, o, C[n], kind) for n, (i, o, kind) in target.matrices().items() if n in C]
    return stacked_sites(flat, layers_of(target))


def stacked(by_name: dict, sites: tuple[Site, ...], axis: int = 0) -> dict:
    """Recorded arrays of single matrices, stacked as the sites are."""
    return {
        s.name: by_name[s.name] if s.span is None else jnp.stack([by_name[n] for n in s.members], axis) for s in sites
    }


def components_of(case: Case, sites: tuple[Site, ...], V: str, U: str) -> ComponentSet:
    """V and U of the sites."""
    held = {w: stacked(case.tree(f"{w}/"), sites) for w in (V, U)}
    owned = {s.name: Components(held[V][s.name], held[U][s.name]) for s in sites}
    return ComponentSet(owned, members=tuple((s.name, s.members) for s in sites if s.span))


def lm_forward(case: Case) -> dict:
    """Clean and masked logits, site inputs, divergences and their gradients; live sites named one by one."""
    target = target_of(case)
    live, every = case.config["live_sites"], sites_of(case, target)
    clean, inputs = clean_forward(target, case["tokens"])
    components = ComponentSet({s: Components(case[f"V/{s}"], case[f"U/{s}"]) for s in live})
    delta, routing = case.tree("delta_mask/"), case.tree("routing/")
    given = {s: SiteMask(case[f"mask/{s}"], delta.get(s), routing.get(s)) for s in live}

    def divergence(component: dict, delta: dict, components: ComponentSet) -> tuple:
        masks = {s: SiteMask(component[s], delta.get(s), given[s].routing) for s in live}
        out, _ = masked_site_outputs(target, components, case["tokens"], masks)
        per_position = target.divergence(clean, out)
        return jnp.mean(per_position), (dense(out), per_position)

    component = {s: m.component for s, m in given.items()}
    run = jax.value_and_grad(divergence, (0, 1, 2), has_aux=True)
    (mean, (out, per_position)), (g_mask, g_delta, g_pieces) = run(component, delta, components)
    got = {"clean_logits": clean, "masked_logits": out, "kl_per_position": per_position, "kl_mean": mean}
    got |= {f"site_input/{name}": inputs[name] for _, _, name in members_in_order(every)}
    for s in live:
        got |= {f"grad/mask/{s}": g_mask[s], f"grad/V/{s}": g_pieces.owned[s].V, f"grad/U/{s}": g_pieces.owned[s].U}
    if set(live) == {name for _, _, name in members_in_order(every)}:
        _agrees_in_stacks(case, target, every, given, out)
    return got | {f"grad/delta_mask/{s}": g for s, g in g_delta.items()}


def _agrees_in_stacks(case: Case, target: LlamaSimpleMLP, sites: tuple[Site, ...], given: dict, out: jax.Array) -> None:
    """The same forward with the sites in stacks."""
    masks = {s.name: jax.tree.map(lambda *x: jnp.stack(x), *(given[n] for n in s.members)) for s in sites}
    got, _ = masked_site_outputs(cut_for(target, sites), components_of(case, sites, "V", "U"), case["tokens"], masks)
    np.testing.assert_allclose(dense(got), out, rtol=1e-5, atol=1e-5)


def ce_kl_eval(case: Case) -> dict:
    """Losses of the deterministic maskings, averaged over the batches."""
    target = target_of(case)
    sites = sites_of(case, target)
    components = components_of(case, sites, "V", "U")
    found = []
    for tokens, ci in zip(case["tokens"], _batches(case.tree("ci/")), strict=True):
        clean, _, _, resume = recorded_forward(target, tokens, sites)
        scene = Scene(target, components, tokens, clean, sites, tokens.shape, False, resume=resume)
        maskings = ("ci_masked", "unmasked", "rounded_masked", "zero_masked")
        key, threshold = jax.random.key(0), case.config["rounding_threshold"]
        losses = masked_losses(scene, stacked(ci, sites), key, threshold, maskings)
        found.append(as_metrics("x", losses))
    return {name.removeprefix("x/"): np.mean([batch[name] for batch in found]) for name in found[0]}


def _batches(by_site: dict) -> list[dict]:
    n = len(next(iter(by_site.values())))
    return [{s: x[i] for s, x in by_site.items()} for i in range(n)]


def _state(case: Case, problem: Problem, sites: tuple[Site, ...]) -> TrainState:
    components = components_of(case, sites, "V0", "U0")
    ci_fn = transformer(case, tuple(sites))
    ci_fn = _reordered(ci_fn, case, sites)
    adversaries = {}
    for name, _ in persistent_terms(problem.terms).items():
        sources = stacked(case.tree("sources0/"), sites)
        zeros = {s: jnp.zeros_like(x) for s, x in sources.items()}
        adversaries[name] = AdversaryState(sources, zeros, dict(zeros), jnp.zeros((), jnp.int32))
    optimizers = (problem.components_optimizer.init(components), problem.ci_fn_optimizer.init(ci_fn))
    return TrainState(Decomposition(components, ci_fn), Training(*optimizers, adversaries, jnp.zeros((), jnp.int32)))


def _reordered(ci_fn, case: Case, sites: tuple[Site, ...], back: bool = False):
    """Rows of the input projection and columns of the head from the recorded order of sites to the numeric one."""
    ours = [name for _, _, name in members_in_order(sites)]
    theirs = list(case.config["ci_site_order"])

    def order(sizes: list[int]) -> np.ndarray:
        starts = dict(zip(theirs, np.cumsum([0, *sizes[:-1]]), strict=True))
        width = dict(zip(theirs, sizes, strict=True))
        return np.concatenate([np.arange(starts[n], starts[n] + width[n]) for n in ours])

    rows, columns = order(case.config["ci_in_sizes"]), order(case.config["ci_out_sizes"])
    rows, columns = (np.argsort(rows), np.argsort(columns)) if back else (rows, columns)
    where = lambda fn: (fn.networks.embed.W, fn.networks.head.W, fn.networks.head.b)  # noqa: E731
    W, head, b = where(ci_fn)
    return eqx.tree_at(where, ci_fn, (W[:, rows], head[..., columns], b[..., columns]))


def _named(tree: Decomposition, case: Case, sites: tuple[Site, ...], V: str, U: str, ci: str) -> dict:
    owned = tree.components.owned
    named = {f"{V}/{n}": x for n, x in unstacked({s: c.V for s, c in owned.items()}, sites).items()}
    named |= {f"{U}/{n}": x for n, x in unstacked({s: c.U for s, c in owned.items()}, sites).items()}
    return named | flatten_transformer(_reordered(tree.ci_fn, case, sites, back=True), ci)


def lm_trajectory(case: Case) -> dict:
    """Losses, norms, rates, parameters and sources of every iteration, the draws given."""
    c = case.config
    target = target_of(case)
    sites = sites_of(case, target)
    target = cut_for(target, sites)
    every = {"batch_size": c["leading"][0], "decomposition_targets": [{"module_pattern": "h.*", "C": 1}]}
    pd = PD.model_validate(every | c["pd"])
    problem = problem_from(pd, sites, has_sequence=True)
    state, T = _state(case, problem, sites), problem.steps
    given: dict = {}
    calls = {"draw": 0, "route": 0}

    def routes(routing, _key, group, _leading):
        if isinstance(routing, AllRouting):
            return {s.name: None for s in group}
        n = calls["route"] % pd.n_mask_samples
        calls["route"] += 1
        return {s: x[n] if s in single else x[:, n] for s, x in given["routing"].items()}

    def draw(_sampling, group, _scene, _key):
        n = calls["draw"] % pd.n_mask_samples
        calls["draw"] += 1
        return {s.name: given["source"][s.name][n] if s.span is None else given["source"][s.name][:, n] for s in group}

    single = {s.name for s in sites if s.span is None}

    @jax.jit
    def step(state: TrainState, tokens: jnp.ndarray, drawn: dict) -> tuple:
        given.update(drawn)
        with mock.patch.object(recon, "draw_routing", routes), mock.patch.object(recon, "_draw", draw):
            gradients, _ = step_gradients(problem, target, state, tokens, 0)
            return *train_step(problem, target, state, tokens, 0), gradients

    u, d = case.tree("stoch_source/"), case.tree("stoch_delta/")
    whole = {s: jnp.concatenate([u[s], d[s][..., None]], axis=-1) for s in u}
    rows: dict[str, list] = {}
    for t in range(T + 1):
        drawn = {
            "source": stacked({s: x[t] for s, x in whole.items()}, sites),
            "routing": stacked({s: x[t] for s, x in case.tree("stoch_routing/").items()}, sites),
        }
        after, logs, gradients = step(state, case["tokens"][t], drawn)
        now = {n: v for n, v in logs.items() if n.startswith("loss/")}
        now |= {
            "grad_norm/components": logs["grad_norm/components"],
            "grad_norm/ci_fns": logs["grad_norm/ci_fn"],
            "lr/components": problem.components_optimizer.lr.on_host(t, T),
            "lr/ci_fn": problem.ci_fn_optimizer.lr.on_host(t, T),
        }
        for adversary in after.training.adversaries.values():
            now |= {f"sources_after/{s}": x for s, x in unstacked(adversary.sources, sites).items()}
        if t == 0:
            of = Decomposition(gradients.components, gradients.ci_fn)
            at = _named(of, case, sites, "grad0/V", "grad0/U", "grad0/ci")
            at |= _named(after.decomposition, case, sites, "V_after1", "U_after1", "after1/ci")
        for name, value in now.items():
            rows.setdefault(name, []).append(np.asarray(value))
        if t < T:
            state = after
    got = {name: np.stack(values) for name, values in rows.items()} | at
    got |= _named(state.decomposition, case, sites, "V_final", "U_final", "final/ci")
    for adversary in after.training.adversaries.values():
        got |= {f"m_final/{s}": x for s, x in unstacked(adversary.m, sites).items()}
        got |= {f"v_final/{s}": x for s, x in unstacked(adversary.v, sites).items()}
    return got
