"""Continuations under a masking: against single forwards, and what can't be continued."""

import jax.numpy as jnp
import numpy as np
import pytest

from vpd import RunError, SiteMask
from vpd.analysis.run import Run

PROMPT = [5, 9, 2, 30, 7, 5]


def by_hand(run: Run, masks_of) -> list[int]:
    """The likeliest tokens, one forward after the other, the window keeping its length."""
    window, new = list(PROMPT), []
    for _ in range(3):
        batch = jnp.asarray([window], jnp.int32)
        logits = run.masked_output(batch, masks_of(batch))
        new.append(int(np.argmax(np.asarray(logits)[0, -1])))
        window = [*window[1:], new[-1]]
    return new


def test_greedy_under_each_masking(language_run: Run) -> None:
    run = language_run
    C, ones = run.axis.sizes, (1, len(PROMPT))

    def all_on(_):
        return {site: jnp.ones((*ones, n)) for site, n in C.items()}

    def rounded(batch):
        return {site: (ci > 0.5).astype(jnp.float32) for site, ci in run.causal_importances(batch).items()}

    expected = {
        "target": by_hand(run, lambda _: {}),
        "all": by_hand(run, all_on),
        "ci": by_hand(run, run.causal_importances),
        "rounded": by_hand(run, rounded),
    }
    for masking, new in expected.items():
        found = run.generate(PROMPT, masking, n_new=3, threshold=0.5)
        assert found.new == new, masking
        assert found.prompt == PROMPT and found.text is not None
    assert len({tuple(new) for new in expected.values()}) > 1


def test_single_subcomponents_are_changed(language_run: Run) -> None:
    """The target without one of them: every mask 1, its own 0, and the delta kept."""
    run, site = language_run, "h.1.mlp.c_fc"

    def without(_):
        mask = jnp.ones((1, len(PROMPT), run.axis.sizes[site])).at[..., 2].set(0.0)
        return {site: SiteMask(mask, jnp.ones((1, len(PROMPT))))}

    expected = by_hand(run, without)
    assert run.generate(PROMPT, n_new=3, ablate=[f"{site}:2"]).new == expected
    factors = np.ones(run.axis.sizes[site], np.float32)
    factors[2] = 0
    assert run.generate(PROMPT, n_new=3, factors={site: factors}).new == expected


def test_draws_are_a_function_of_the_seed(language_run: Run) -> None:
    one, again, other = (
        language_run.generate("w1 w2 w3", "stochastic", n_new=12, temperature=3.0, seed=seed).new for seed in (1, 1, 2)
    )
    assert one == again != other


def test_what_can_not_be_continued(language_run: Run, tiny_run: Run) -> None:
    with pytest.raises(RunError, match="without a sequence of tokens"):
        tiny_run.generate("w1")
    for arguments, how, why in (
        (([1], "some"), {}, "no masking"),
        (([],), {}, "prompt is empty"),
        (([99],), {}, "tokens are 0 to 61"),
        (([1],), {"n_new": 0}, "at least one"),
        (([1],), {"ablate": ["h.9.mlp.c_fc:0"]}, "not a decomposed site"),
        (([1],), {"ablate": ["h.1.mlp.c_fc:4"]}, "0 to 3"),
        (([1],), {"factors": {"h.1.mlp.c_fc": np.ones(3)}}, "C = 4"),
    ):
        with pytest.raises(RunError, match=why):
            language_run.generate(*arguments, **how)
