"""Causal rotary attention and the induction transformer written again in NumPy, position by position."""

import numpy as np


def rotated(x: np.ndarray, position: int, base: float = 10000.0) -> np.ndarray:
    """One head's vector as complex numbers, each turned by its angle."""
    half = len(x) // 2
    turn = np.exp(1j * position * base ** (-2 * np.arange(half) / len(x)))
    z = (x[:half] + 1j * x[half:]) * turn
    return np.concatenate([z.real, z.imag])


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, n_heads: int) -> np.ndarray:
    """One sequence ``[T, d]``."""
    T, d = q.shape
    width, out = d // n_heads, np.zeros((T, d))
    for head in range(n_heads):
        part = slice(head * width, (head + 1) * width)
        for t in range(T):
            query = rotated(q[t, part], t)
            scores = np.array([query @ rotated(k[s, part], s) for s in range(t + 1)]) / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            out[t, part] = weights / weights.sum() @ v[: t + 1, part]
    return out


def induction(target, tokens: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits ``[batch, T, vocab]`` and the input of every matrix, in float64."""
    wte = np.asarray(target.wte, np.float64)
    h, inputs = wte[tokens], {"wte": tokens}
    for i, layer in enumerate(target.layers):
        q, k, v = (h @ np.asarray(getattr(layer, name), np.float64) for name in ("q_proj", "k_proj", "v_proj"))
        mixed = np.stack([attention(*one, target.n_heads) for one in zip(q, k, v, strict=True)])
        inputs |= {f"h.{i}.attn.{name}": h for name in ("q_proj", "k_proj", "v_proj")}
        inputs[f"h.{i}.attn.o_proj"] = mixed
        h = h + mixed @ np.asarray(layer.o_proj, np.float64)
    inputs["lm_head"] = h
    return h @ wte.T, inputs
