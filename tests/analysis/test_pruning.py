"""Behaviour pruning on a planted network, where what is needed is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpd.analysis.pruning.measures import kept_from, measured
from vpd.analysis.pruning.optimise import Effort, optimise
from vpd.analysis.pruning.question import Asked, Importances, Question
from vpd.decomposition import Components, ComponentSet, Factored, Site
from vpd.objective import Scene
from vpd.randomness import stream
from vpd.targets import TMS, clean_forward, kl
from vpd.targets.divergence import cross_entropy

ROWS = 4
# Three features that the network keeps apart, and at the first site two that cancel: subcomponent 3 raises output 0,
# and 4 lowers it as much; below 0 the relu hides it. Importances as masks drop both. An adversary brings 3 back, so
# that 4 has to be kept, and 4 is enough.
FEATURE, CANCELS = 1, 4


@pytest.fixture(scope="module")
def question() -> Question:
    """Feature 1 alone."""
    target = TMS(linear1=jnp.eye(3), bias=jnp.zeros(3), linear2=jnp.eye(3))
    V, U = jnp.concatenate([jnp.eye(3), jnp.ones((3, 2))], axis=1), jnp.concatenate([jnp.eye(3), jnp.zeros((2, 3))])
    U = U.at[3, 0].set(4.0).at[4, 0].set(-4.0)
    pieces = ComponentSet({"linear1": Components(V, U), "linear2": Components(jnp.eye(3), jnp.eye(3))})
    sites = (Site("linear1", 3, 3, 5), Site("linear2", 3, 3, 3))
    batch = jnp.repeat(0.75 * jax.nn.one_hot(jnp.asarray([FEATURE]), 3), ROWS, axis=0)
    scene = Scene(
        target=Asked(target, None, None, "kl"),
        components=pieces,
        batch=batch,
        clean=clean_forward(target, batch)[0],
        sites=sites,
        leading=(ROWS,),
        use_delta=True,
    )
    return Question(scene, {site.name: jnp.ones((1, site.C)) for site in sites})


@pytest.fixture(scope="module")
def subsets(question: Question) -> dict[bool, Importances]:
    """The faithful subset, and that of importances as masks."""
    alive = {site: ci > 0 for site, ci in question.ci.items()}
    found = {f: optimise(question, alive, Effort(300, 1e-3, faithful=f)) for f in (True, False)}
    return {f: {site: (x > 0).astype(jnp.float32) for site, x in g.items()} for f, g in found.items()}


def test_what_an_adversary_could_use_is_kept(subsets: dict[bool, Importances]) -> None:
    assert np.flatnonzero(subsets[True]["linear1"]).tolist() == [FEATURE, CANCELS]
    assert np.flatnonzero(subsets[False]["linear1"]).tolist() == [FEATURE]
    for faithful in (True, False):
        assert np.flatnonzero(subsets[faithful]["linear2"]).tolist() == [FEATURE]


def test_what_subsets_do(question: Question, subsets: dict[bool, Importances]) -> None:
    """Both are enough alone, and only the faithful one is with an adversary on the rest; without either all is lost."""
    alive = {site: ci > 0 for site, ci in question.ci.items()}
    program = jax.jit(measured)
    kept = {f: kept_from(program(question, g, alive, stream(0, "x")), "kl") for f, g in subsets.items()}
    nothing, raised = 0.75**2 / 3, (4 * 0.75) ** 2 / 3
    for faithful, left in ((True, nothing + raised), (False, nothing)):
        assert kept[faithful].alone["kl"] < 1e-6
        np.testing.assert_allclose(kept[faithful].without["kl"], left, rtol=1e-3)
    assert kept[True].adversarial["kl"] < 1e-6 < kept[False].adversarial["kl"] <= kept[False].worst["kl"]
    np.testing.assert_allclose(kept[False].worst["kl"], raised, rtol=1e-3)


@pytest.mark.parametrize("factored", [False, True])
def test_what_is_asked(factored: bool) -> None:
    """Only the positions asked for count, of logits in either form."""
    z, basis = jax.random.normal(jax.random.key(0), (2, 2, 5, 4)), jax.random.normal(jax.random.key(1), (4, 7))
    clean, masked = (Factored(((x, basis),)) if factored else x @ basis for x in z)
    at, labels = jnp.asarray([1, 4]), jnp.asarray([3, 0])

    class Logits(TMS):
        def divergence(self, clean, masked):
            return kl(clean, masked)

    target = Logits(jnp.eye(2), jnp.zeros(2))
    dense = z @ basis
    found = Asked(target, at, labels, "kl").divergence(clean, masked)
    np.testing.assert_allclose(found, kl(dense[0], dense[1])[:, at], rtol=1e-4, atol=1e-5)
    found = Asked(target, at, labels, "ce").divergence(clean, masked)
    np.testing.assert_allclose(found, cross_entropy(dense[1][:, at], jnp.tile(labels, (2, 1))), rtol=1e-5)
