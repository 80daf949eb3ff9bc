"""The divergence of attention patterns against a computation head by head, and what is refused."""

import math

import jax
import numpy as np
import pytest
from evaluation.language_scenes import language_scene, plain_forward
from objective.scenes import jit
from targets.language_models import MODELS, SCALING

from vpd.errors import RunError
from vpd.evaluation.attention_patterns import AttentionMetric, attention_divergence, check_attention
from vpd.evaluation.maskings import masks_of
from vpd.targets.layers import UNROLLED

KEY = jax.random.key(5)
HEADS = {"simple_mlp": (2, 1), "llama": (4, 2), "gpt2": (2, 2)}
GLOBS = {
    "simple_mlp": ("h.*.attn.q_proj", "h.*.attn.k_proj"),
    "llama": ("model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.k_proj"),
    "gpt2": ("transformer.h.*.attn.c_attn", None),
}


def frequencies(name: str, half: int) -> np.ndarray:
    """Angles a position, those of Llama stretched wavelength by wavelength."""
    plain = [{"simple_mlp": 10000.0, "llama": 500.0, "gpt2": 1.0}[name] ** (-j / half) for j in range(half)]
    if name == "gpt2":
        return np.zeros(half)
    if name == "simple_mlp":
        return np.array(plain)
    long, short = (SCALING.original_length / x for x in (SCALING.low_freq_factor, SCALING.high_freq_factor))
    found = []
    for f in plain:
        wavelength = 2 * math.pi / f
        share = (SCALING.original_length / wavelength - SCALING.low_freq_factor) / (
            SCALING.high_freq_factor - SCALING.low_freq_factor
        )
        between = (1 - share) * f / SCALING.factor + share * f
        found.append(f if wavelength < short else f / SCALING.factor if wavelength > long else between)
    return np.array(found)


def patterns(name: str, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """``[B, heads, T, T]``, query by query."""
    n_heads, n_kv = HEADS[name]
    B, T, width = *q.shape[:2], q.shape[2] // n_heads
    turns = frequencies(name, width // 2)

    def turned(x: np.ndarray, t: int) -> np.ndarray:
        z = (x[: width // 2] + 1j * x[width // 2 :]) * np.exp(1j * t * turns)
        return np.concatenate([z.real, z.imag])

    found = np.zeros((B, n_heads, T, T))
    for b in range(B):
        for head in range(n_heads):
            shared = head // (n_heads // n_kv)
            for t in range(T):
                query = turned(q[b, t, head * width : (head + 1) * width], t)
                keys = [turned(k[b, s, shared * width : (shared + 1) * width], s) for s in range(t + 1)]
                scores = np.array([query @ key for key in keys]) / math.sqrt(width)
                weights = np.exp(scores - scores.max())
                found[b, head, t, : t + 1] = weights / weights.sum()
    return found


def brute_force(name: str, clean: dict, masked: dict, layer: str, globs: tuple[str, str | None]) -> float:
    p, q = (
        patterns(name, *(outputs[f"{layer}.{glob.split('.*.')[1]}"] for glob in globs if glob is not None))
        if globs[1] is not None
        else patterns(name, *np.split(outputs[f"{layer}.{globs[0].split('.*.')[1]}"], 3, axis=-1)[:2])
        for outputs in ({n: np.asarray(x, np.float64) for n, x in side.items()} for side in (clean, masked))
    )
    seen = p > 0
    return float(np.where(seen, p * np.log(np.where(seen, p, 1) / np.where(seen, q, 1)), 0).sum(-1).mean())


ALL, SOME, NONE = "decomposed", "one of them", "not decomposed"
SIZES = {
    ("simple_mlp", ALL): {"attn.q_proj": 5, "attn.k_proj": 3},
    ("simple_mlp", SOME): {"attn.q_proj": 5, "1.attn.o_proj": 4},
    ("simple_mlp", NONE): {"mlp.c_fc": 6},
    ("llama", ALL): {"self_attn.q_proj": 5, "self_attn.k_proj": 3},
    ("llama", NONE): {"mlp.up_proj": 6, "model.embed_tokens": 5},
    ("gpt2", ALL): {"attn.c_attn": 7},
    ("gpt2", NONE): {"mlp.c_proj": 6},
}


# Where nothing of the attention is masked, one depth says it.
CASES = [(*case, n) for case in SIZES for n in (2, UNROLLED + 2) if n == 2 or case[1] != NONE]


@pytest.mark.parametrize(("name", "which", "n_layers"), CASES)
def test_against_brute_force(name: str, which: str, n_layers: int) -> None:
    scene, ci = language_scene(name, SIZES[name, which], n_layers)
    masking = "stoch_masked" if which == ALL else "ci_masked"
    metric = AttentionMetric(*GLOBS[name], HEADS[name][0], masking)
    check_attention("m", metric, scene.target)
    got = jit(lambda s, c: attention_divergence(metric, s, c, KEY))(scene, ci)
    _, clean = plain_forward(scene)
    _, masked = plain_forward(scene, masks_of(masking, scene, ci, KEY))
    prefix = GLOBS[name][0].partition(".*.")[0]
    assert set(got) == {f"{prefix}.{i}" for i in range(n_layers)}
    for layer, value in got.items():
        want = brute_force(name, clean, masked, layer, GLOBS[name])
        np.testing.assert_allclose(value, want, rtol=1e-3, atol=1e-6)
    assert max(map(float, got.values())) > 1e-3


def test_a_glob_of_one_layer_measures_that_layer() -> None:
    scene, ci = language_scene("simple_mlp", SIZES["simple_mlp", ALL])
    metric = AttentionMetric("h.1.attn.q_proj", "h.1.attn.k_proj", 2, "ci_masked")
    got = jit(lambda s, c: attention_divergence(metric, s, c, KEY))(scene, ci)
    assert set(got) == {"h.1"}


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (AttentionMetric("h.*.attn.q_proj", "h.*.attn.k_proj", 3, "ci_masked"), "n_heads is 3, and the model has 2"),
        (AttentionMetric("h.*.attn.query", "h.*.attn.k_proj", 2, "ci_masked"), "'h.*.attn.query' names no matrix"),
        (AttentionMetric("h.*.attn.q_proj", "h.9.attn.k_proj", 2, "ci_masked"), "'h.9.attn.k_proj' names no matrix"),
    ],
)
def test_refusals(metric: AttentionMetric, said: str) -> None:
    with pytest.raises(RunError) as refused:
        check_attention("eval.metrics x", metric, MODELS["simple_mlp"]())
    assert said in str(refused.value) and str(refused.value).startswith("eval.metrics x")
    assert "\n" not in str(refused.value)


def test_projections_of_different_layers_are_refused() -> None:
    scene, _ = language_scene("simple_mlp", {"1.attn.o_proj": 4})  # the layers are three runs
    metric = AttentionMetric("h.0.attn.q_proj", "h.1.attn.k_proj", 2, "ci_masked")
    with pytest.raises(RunError, match="different layers"):
        check_attention("x", metric, scene.target)
