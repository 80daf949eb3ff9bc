"""Weights of language models as safetensors: what is written is read back, in any of the layouts people have."""

import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from targets.language_models import MODELS, gpt2, llama, same, simple_mlp
from training.abstract_runs import LLAMA_8B

from vpd.config.targets import FileSpec, PretrainedSpec
from vpd.errors import RunError
from vpd.targets import GPT2, Llama, LlamaSimpleMLP, init_llama
from vpd.targets.checkpoint import (
    abstract_language_model,
    config_values,
    load_language_model,
    open_path,
    read_model,
    save_language_model,
)
from vpd.targets.layers import with_cuts

WEIGHTS, CONFIG = "model.safetensors", "config.json"
every_model = pytest.mark.parametrize("name", MODELS)


def read(folder: Path, dtype: str = "float32"):
    return read_model(open_path(folder), None, dtype)


def rewrite(folder: Path, change) -> None:
    """Change the tensors of a saved model."""
    weights = load_file(folder / WEIGHTS)
    save_file({name: np.ascontiguousarray(value) for name, value in change(weights).items()}, folder / WEIGHTS)


def reconfigure(folder: Path, **values: object) -> None:
    """Change values of a saved configuration; None takes one out."""
    config = json.loads((folder / CONFIG).read_text()) | values
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@every_model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_saved_is_read_back_bit_by_bit(name: str, dtype: str, tmp_path: Path) -> None:
    model = jax.tree.map(lambda x: x.astype(dtype), MODELS[name]())
    save_language_model(model, tmp_path / "a" / "b", {"tokenizer": "words", "n_embd": 1, "hidden_size": 1})
    spec = PretrainedSpec(
        kind="pretrained", run_path=str(tmp_path / "a" / "b"), model_class=f"lab.{type(model).__name__}"
    )
    again, facts = load_language_model(spec, dtype)
    assert same(again, model)
    assert facts.values["tokenizer"] == "words" and facts.values["dtype"] == dtype
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [CONFIG, WEIGHTS]


@every_model
@pytest.mark.parametrize("tied", [False, True])
def test_heads(name: str, tied: bool, tmp_path: Path) -> None:
    model = MODELS[name](tied=tied)
    save_language_model(model, tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / WEIGHTS)) is not tied
    assert same(read(tmp_path), model)


@every_model
def test_cut_layers_are_saved_whole(name: str, tmp_path: Path) -> None:
    save_language_model(with_cuts(MODELS[name](), lambda _: (1, 2)), tmp_path)
    assert same(read(tmp_path), MODELS[name]())


@every_model
def test_values_describe_the_model(name: str) -> None:
    model = MODELS[name]()
    abstract = abstract_language_model(config_values(model), dtype="bfloat16")
    want = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), model)
    assert jax.tree.structure(abstract) == jax.tree.structure(want)
    assert jax.tree.leaves(abstract) == jax.tree.leaves(want)


def test_shards(tmp_path: Path) -> None:
    model = llama()
    save_language_model(model, tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    shards = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({name: value for name, value in weights.items() if shards[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert same(read(tmp_path), model)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(RunError, match=r"names 1 files that are not there, the first model-1\.safetensors"):
        read(tmp_path)


@pytest.mark.parametrize(("make", "prefix"), [(llama, "model."), (gpt2, "transformer.")])
def test_names_of_the_bare_network(make, prefix: str, tmp_path: Path) -> None:
    """Without the prefix, and with the buffers that such files carry."""
    model = make()
    save_language_model(model, tmp_path)

    def bare(weights):
        buffers = {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8), "h.0.attn.masked_bias": np.float32([-1e4])}
        return {n.removeprefix(prefix): w for n, w in weights.items()} | (buffers if prefix == "transformer." else {})

    rewrite(tmp_path, bare)
    assert same(read(tmp_path), model)


def test_a_tied_head_may_be_stored_twice_or_under_its_own_name(tmp_path: Path) -> None:
    model = simple_mlp()
    save_language_model(model, tmp_path)
    rewrite(tmp_path, lambda w: w | {"lm_head.weight": w["wte.weight"]})
    assert same(read(tmp_path), model)
    reconfigure(tmp_path, tie_word_embeddings=None)  # then the tensors tell
    assert same(read(tmp_path), model)
    rewrite(tmp_path, lambda w: {n: x for n, x in w.items() if n != "wte.weight"})
    assert same(read(tmp_path), model)


def test_the_tensors_tell_of_an_untied_head(tmp_path: Path) -> None:
    model = simple_mlp(tied=False)
    save_language_model(model, tmp_path)
    reconfigure(tmp_path, tie_word_embeddings=None)
    assert same(read(tmp_path), model)
    reconfigure(tmp_path, tie_word_embeddings=True)
    with pytest.raises(RunError, match="said to have a tied head"):
        read(tmp_path)


def test_the_papers_configuration(tmp_path: Path) -> None:
    """model_config.yaml in the spelling of the papers' code."""
    model = simple_mlp()
    save_language_model(model, tmp_path)
    (tmp_path / CONFIG).unlink()
    (tmp_path / "model_config.yaml").write_text(
        "block_size: 40\nvocab_size: 20\nn_layer: 3\nn_head: 2\nn_embd: 8\nn_intermediate: 12\nmlp_bias: false\n"
        "attn_bias: false\nrotary_adjacent_pairs: false\nrotary_dim: 4\nrotary_base: 10000\nn_ctx: 40\n"
        "n_key_value_heads: 1\nuse_grouped_query_attention: true\nflash_attention: true\n"
    )
    path = tmp_path / WEIGHTS
    spec = FileSpec(kind="file", path=str(path), model_class="spd_models.llama_simple_mlp.LlamaSimpleMLP")
    assert same(load_language_model(spec)[0], model)


def test_files_of_torch_are_stored_the_other_way(tmp_path: Path) -> None:
    """Linear weights are [d_out, d_in] in the file, GPT-2's convolutions [d_in, d_out]; the model has [d_in, d_out]."""
    save_language_model(llama(), tmp_path / "llama")
    stored = load_file(tmp_path / "llama" / WEIGHTS)["model.layers.1.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(stored.T, llama().layers.whole.gate_proj[1])
    save_language_model(gpt2(), tmp_path / "gpt2")
    stored = load_file(tmp_path / "gpt2" / WEIGHTS)["transformer.h.2.attn.c_attn.weight"]
    np.testing.assert_array_equal(stored, gpt2().layers.whole.c_attn[2])


def test_published_sizes_without_their_weights() -> None:
    def count(values: dict[str, object]) -> int:
        return sum(x.size for x in jax.tree.leaves(abstract_language_model(values, dtype="bfloat16")))

    assert count(LLAMA_8B) == 8_030_261_248
    gpt2_small = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
    assert count({"model_type": "gpt2", **gpt2_small}) == 124_439_808
    assert isinstance(abstract_language_model(LLAMA_8B), Llama)
    assert isinstance(abstract_language_model(gpt2_small, "transformers.GPT2LMHeadModel"), GPT2)
    assert isinstance(abstract_language_model(config_values(simple_mlp())), LlamaSimpleMLP)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_makes_no_second_copy(dtype: str, tmp_path: Path) -> None:
    """Beside the model there is one array and one tensor: of 28 large arrays, a few at most."""
    d, depth = 96, 4
    model = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: init_llama(d, d, depth, 4, 4, d, 0)))
    save_language_model(model, tmp_path)
    checkpoint = open_path(tmp_path)
    read_model(checkpoint, None, dtype)
    tracemalloc.start()
    again = read_model(checkpoint, None, dtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(x.nbytes for x in jax.tree.leaves(again))
    tensor = 4 * d * d
    assert size > 20 * tensor / (2 if dtype == "bfloat16" else 1)
    assert peak < size + depth * tensor + 3 * tensor


def test_saving_makes_no_second_copy(tmp_path: Path) -> None:
    d = 96
    model = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: init_llama(d, d, 4, 4, 4, d, 0)))
    save_language_model(model, tmp_path)
    tracemalloc.start()
    save_language_model(model, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(x.nbytes for x in jax.tree.leaves(model)) / 3
