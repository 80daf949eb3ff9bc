"""Llama and GPT-2 against transformers: recorded networks everywhere, live ones where it is installed."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from targets.language_models import MODELS, llama, same, tokens

from vpd.config.targets import FileSpec, PackageSpec
from vpd.targets import LanguageModel, clean_forward
from vpd.targets.checkpoint import load_language_model, open_path, parity_report, read_model, save_language_model

RECORDED = Path(__file__).parent / "recorded"
forward = jax.jit(lambda m, x: clean_forward(m, x)[0])
live = pytest.mark.skipif(not (find_spec("transformers") and find_spec("torch")), reason="needs transformers and torch")


def unpacked(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Writes a recorded network as transformers does, and returns its tokens and logits."""
    with np.load(RECORDED / f"{name}.npz") as file:
        weights = {key.removeprefix("weights/"): file[key] for key in file.files if key.startswith("weights/")}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(str(file["config"]))
        return file["tokens"], file["logits"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Scaled rotary positions, shared key heads, wide heads and an own head; biases, and a fused c_attn."""
    ids, want = unpacked(name, tmp_path)
    got = forward(read_model(open_path(tmp_path), None, "float32"), jnp.asarray(ids))
    assert np.abs(want).max() > 2
    assert np.abs(np.asarray(got) - want).max() <= 1e-5


def test_rotary_scaling_counts(tmp_path: Path) -> None:
    """Without it the recorded logits are missed by far."""
    ids, want = unpacked("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    got = forward(read_model(open_path(tmp_path), None, "float32"), jnp.asarray(ids))
    assert np.abs(np.asarray(got) - want).max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_recorded_networks_are_written_back_as_they_were(name: str, tmp_path: Path) -> None:
    unpacked(name, tmp_path)
    model = read_model(open_path(tmp_path), None, "float32")
    save_language_model(model, tmp_path / "again")
    again = open_path(tmp_path / "again")
    assert again.shapes == open_path(tmp_path).shapes
    assert same(model, read_model(again, None, "float32"))


SAVED: dict[str, Callable[[], LanguageModel]] = {
    "llama scaled": llama,
    "llama tied": lambda: llama(tied=True, scaling=None),
    "gpt2": MODELS["gpt2"],
    "gpt2 untied": lambda: MODELS["gpt2"](tied=False),
}


@live
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", SAVED)
def test_transformers_reads_what_is_saved(name: str, tmp_path: Path) -> None:
    save_language_model(SAVED[name](), tmp_path)
    spec = FileSpec(kind="file", path=str(tmp_path), model_class=type(SAVED[name]()).__name__)
    found = parity_report(spec, reference=True, tokens=np.asarray(tokens(2, 40)))
    assert found.logits is not None and found.logits.max_difference <= 1e-5 < found.logits.largest


@pytest.mark.skipif(find_spec("glassllm") is None, reason="needs the package glassllm")
def test_glassllm_against_its_own_numpy_model() -> None:
    ids = np.random.default_rng(0).integers(0, 1024, (2, 128))
    found = parity_report(PackageSpec(kind="package", name="glassllm"), reference=True, tokens=ids)
    assert found.fit.whole and found.logits is not None and found.logits.reference == "glassllm"
    assert found.logits.max_difference <= 1e-4 < 10 < found.logits.largest
    assert found.parameters == 852_608
    assert "852,608 parameters" in found.text() and "model.layers.*.mlp.gate_proj" in found.text()


@pytest.mark.skipif(find_spec("glassllm") is None, reason="needs the package glassllm")
def test_glassllm_is_read_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "glassllm.model", None)  # an import of the package would fail
    model, facts = load_language_model(PackageSpec(kind="package", name="glassllm"), "bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model)} == {"bfloat16"}
    assert facts.format == "npz" and facts.storage == {"float16": 38} and not facts.quantised
