"""Whole training trajectories: the step of the project, fed with recorded batches, initial values and routing."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from case import Case
from kinds import flatten_mlp, site_mlp

from vpd.config.run import PD
from vpd.decomposition import AllRouting, Components, ComponentSet, Site
from vpd.importance import LayerwiseMLP
from vpd.objective import AdamAscent, AdversaryState, recon
from vpd.objective.total import persistent_terms
from vpd.targets import TMS
from vpd.training.build import problem_from
from vpd.training.state import Decomposition, Training, TrainState
from vpd.training.step import Problem, step_gradients, train_step


def _target(case: Case) -> TMS:
    hidden = [s["name"] for s in case.config["sites"] if s["name"].startswith("hidden_layers.")]
    layers = tuple(case[f"W/{s}"] for s in sorted(hidden, key=lambda s: int(s.rsplit(".", 1)[1])))
    return TMS(case["W/linear1"], case["b/linear2"], layers, case["W/linear2"])


def _state(case: Case, problem: Problem, hidden: int) -> TrainState:
    components = ComponentSet({s.name: Components(case[f"V0/{s.name}"], case[f"U0/{s.name}"]) for s in problem.sites})
    ci_fn = LayerwiseMLP({s.name: site_mlp(case, f"ci/{s.name}", hidden) for s in problem.sites}, "mlp")
    adversaries = {}
    for name, (_, spec) in persistent_terms(problem.terms).items():
        sources = case.tree("sources0/")
        adam = isinstance(spec.optimizer, AdamAscent)
        zeros = {s: jnp.zeros_like(x) for s, x in sources.items()} if adam else {}
        adversaries[name] = AdversaryState(sources, zeros, dict(zeros), jnp.zeros((), jnp.int32))
    optimizers = (problem.components_optimizer.init(components), problem.ci_fn_optimizer.init(ci_fn))
    return TrainState(Decomposition(components, ci_fn), Training(*optimizers, adversaries, jnp.zeros((), jnp.int32)))


def _weights(tree: Decomposition, V: str, U: str, ci: str) -> dict:
    named = {}
    for s, c in tree.components.owned.items():
        named |= {f"{V}/{s}": c.V, f"{U}/{s}": c.U}
    for s, mlp in tree.ci_fn.sites.items():
        named |= flatten_mlp(mlp, f"{ci}/{s}")
    return named


def tms_trajectory(case: Case) -> dict:
    """Losses, norms, rates, parameters and sources of every iteration."""
    c = case.config
    pd = PD.model_validate({"n_mask_samples": 1, "batch_size": c["leading"][0]} | c["pd"])
    target = _target(case)
    C = {s["name"]: s["C"] for s in c["sites"]}
    sites = [Site(n, i, o, C[n], kind) for n, (i, o, kind) in target.matrices().items() if n in C]
    problem = problem_from(pd, sites, has_sequence=len(c["leading"]) > 1)
    state, T = _state(case, problem, len(c["pd"]["ci_config"]["hidden_dims"])), problem.steps

    def recorded(routing, _key, sites, _leading):
        return {s.name: None if isinstance(routing, AllRouting) else routes[s.name] for s in sites}

    routes: dict = {}

    @jax.jit
    def step(state: TrainState, x: jnp.ndarray, given: dict) -> tuple:
        routes.update(given)
        with mock.patch.object(recon, "draw_routing", recorded):
            gradients, _ = step_gradients(problem, target, state, x, 0)
            return *train_step(problem, target, state, x, 0), gradients

    rows: dict[str, list] = {}
    for t in range(T + 1):
        now = {f"V_at/{s}": x.V for s, x in state.decomposition.components.owned.items()}
        now |= {f"U_at/{s}": x.U for s, x in state.decomposition.components.owned.items()}
        given = {s: r[t] for s, r in case.tree("ppgd_routing/").items()}
        after, logs, gradients = step(state, case["x"][t], given)
        now |= {n: v for n, v in logs.items() if n.startswith("loss/")}
        now |= {
            "grad_norm/components": logs["grad_norm/components"],
            "grad_norm/ci_fns": logs["grad_norm/ci_fn"],
            "lr/components": problem.components_optimizer.lr.on_host(t, T),
            "lr/ci_fn": problem.ci_fn_optimizer.lr.on_host(t, T),
        }
        for adversary in after.training.adversaries.values():
            now |= {f"sources_after/{s}": x for s, x in adversary.sources.items()}
        if t == 0:
            at_start = _weights(Decomposition(gradients.components, gradients.ci_fn), "grad0/V", "grad0/U", "grad0/ci")
        for name, value in now.items():
            rows.setdefault(name, []).append(np.asarray(value))
        if t < T:
            state = after
    got = {name: np.stack(values) for name, values in rows.items()} | at_start
    got |= _weights(state.decomposition, "V_final", "U_final", "final/ci")
    for adversary in after.training.adversaries.values():
        got |= {f"m_final/{s}": x for s, x in adversary.m.items()}
        got |= {f"v_final/{s}": x for s, x in adversary.v.items()}
    return got
