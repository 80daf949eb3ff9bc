"""Toy targets as files: back to the same bits, and one sentence for a file that is damaged or another network."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import filled, tms
from safetensors.numpy import load, save

from vpd.config.targets import StoredTarget
from vpd.errors import RunError
from vpd.targets import init_induction, init_resid_mlp
from vpd.targets.build import load_stored
from vpd.targets.weights import Toy, load_target, target_bytes, target_from_arrays

INDUCTION = partial(init_induction, 9, 8, 11, 2, 16)
RESID = partial(init_resid_mlp, 5, 6, 3, 11, "relu")
Arrays = dict[str, np.ndarray]

TARGETS: dict[str, Callable[[], Toy]] = {
    "tms": tms,
    "deep_tms": lambda: tms(11),
    "untied_tms": lambda: tms(1, untied=True),
    "resid_mlp": lambda: filled(lambda _: RESID()),
    "resid_mlp_biases": lambda: filled(lambda _: RESID(in_bias=True, out_bias=True)),
    "resid_mlp_one_bias": lambda: filled(lambda _: RESID(out_bias=True)),
    "induction": lambda: filled(lambda _: INDUCTION(0)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_back_to_the_same_bits(name: str, tmp_path: Path) -> None:
    target, path = TARGETS[name](), tmp_path / "target.safetensors"
    path.write_bytes(target_bytes(target))
    read = load_target(path)
    assert jax.tree.structure(read) == jax.tree.structure(target)  # sizes, heads and activation included
    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(read)] == [
        np.asarray(x).tobytes() for x in jax.tree.leaves(target)
    ]
    assert target_bytes(read) == path.read_bytes()


def test_arrays_without_metadata_are_a_tms(tmp_path: Path) -> None:
    target = tms(1)
    read = target_from_arrays({k: jnp.asarray(x) for k, x in load(target_bytes(target)).items()}, {})
    jax.tree.map(np.testing.assert_array_equal, read, target)


def rewritten(target: Toy, facts: Mapping[str, str], **changes: np.ndarray | None) -> bytes:
    """The file of a target with other metadata, and arrays replaced (underscores for dots) or left out."""
    arrays: Arrays = load(target_bytes(target))
    for name, value in changes.items():
        del arrays[name.replace("__", ".")]
        if value is not None:
            arrays[name.replace("__", ".")] = value
    return save(arrays, metadata=dict(facts))


_RESID_FACTS = {"kind": "resid_mlp", "act_fn_name": "relu"}
_INDUCTION_FACTS = {"kind": "induction", "n_heads": "2", "seq_len": "16"}
_SMALL = np.ones((2, 2), np.float32)

DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"weights\n" * 20,
    "cut_short": lambda: target_bytes(tms())[:-3],
    "cut_in_the_header": lambda: target_bytes(tms())[:20],
    "tms_without_bias": lambda: rewritten(tms(), {}, linear2__bias=None),
    "tms_misfit_layer": lambda: rewritten(tms(1), {}, hidden_layers__0__weight=_SMALL),
    "tms_misfit_bias": lambda: rewritten(tms(), {}, linear2__bias=np.ones(3, np.float32)),
    "tms_vector": lambda: rewritten(tms(), {}, linear1__weight=np.ones(4, np.float32)),
    "tms_half_precision": lambda: rewritten(tms(), {}, linear1__weight=np.ones((4, 3), np.float16)),
    "tms_double_precision": lambda: rewritten(tms(), {}, linear1__weight=np.ones((4, 3), np.float64)),
    "tms_integers": lambda: rewritten(tms(), {}, linear1__weight=np.ones((4, 3), np.int32)),
    "tms_bfloat16": lambda: rewritten(tms(), {}, linear1__weight=np.asarray(jnp.ones((4, 3), jnp.bfloat16))),
    "unknown_kind": lambda: rewritten(tms(), {"kind": "gpt"}),
    "tms_called_resid": lambda: rewritten(tms(), _RESID_FACTS),
    "tms_called_induction": lambda: rewritten(tms(), _INDUCTION_FACTS),
    "resid_called_tms": lambda: rewritten(TARGETS["resid_mlp"](), {}),
    "resid_without_activation": lambda: rewritten(TARGETS["resid_mlp"](), {"kind": "resid_mlp"}),
    "resid_unknown_activation": lambda: rewritten(TARGETS["resid_mlp"](), _RESID_FACTS | {"act_fn_name": "silu"}),
    "resid_without_a_layer": lambda: rewritten(TARGETS["resid_mlp"](), _RESID_FACTS, layers__3__mlp_in__weight=None),
    "resid_misfit_layer": lambda: rewritten(TARGETS["resid_mlp"](), _RESID_FACTS, layers__3__mlp_in__weight=_SMALL),
    "resid_misfit_embedding": lambda: rewritten(TARGETS["resid_mlp"](), _RESID_FACTS, W_E=_SMALL),
    "resid_misfit_bias": lambda: rewritten(
        TARGETS["resid_mlp_biases"](), _RESID_FACTS, layers__1__mlp_out__bias=np.ones(3, np.float32)
    ),
    "induction_without_facts": lambda: rewritten(TARGETS["induction"](), {"kind": "induction"}),
    "induction_wordy_facts": lambda: rewritten(TARGETS["induction"](), _INDUCTION_FACTS | {"n_heads": "two"}),
    "induction_odd_heads": lambda: rewritten(TARGETS["induction"](), _INDUCTION_FACTS | {"n_heads": "3"}),
    "induction_no_heads": lambda: rewritten(TARGETS["induction"](), _INDUCTION_FACTS | {"n_heads": "0"}),
    "induction_no_sequence": lambda: rewritten(TARGETS["induction"](), _INDUCTION_FACTS | {"seq_len": "-1"}),
    "induction_few_tokens": lambda: rewritten(TARGETS["induction"](), _INDUCTION_FACTS | {"seq_len": "32"}),
    "induction_misfit": lambda: rewritten(TARGETS["induction"](), _INDUCTION_FACTS, h__7__attn__q_proj__weight=_SMALL),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "target.safetensors"
    path.write_bytes(DAMAGED[name]())
    with pytest.raises(RunError) as caught:
        load_target(path)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and str(path) in said and "can't be read as the weights" in said


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_no_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="can't be read") as caught:
        load_target(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["tms", "resid_mlp", "induction"])
@pytest.mark.parametrize("stored", ["tms", "resid_mlp", "induction"])
def test_a_stored_target_of_another_kind(kind: str, stored: str, tmp_path: Path) -> None:
    """A run directory or a file, of the kind that the sites to decompose mean, or refused."""
    path = tmp_path / "target.safetensors"
    path.write_bytes(target_bytes(TARGETS[stored]()))
    for run_path in (tmp_path, path):
        config = StoredTarget(run_path=str(run_path))
        if kind == stored:
            assert target_bytes(load_stored(config, kind)) == path.read_bytes()
            continue
        names = {"tms": "TMS", "resid_mlp": "ResidMLP", "induction": "induction transformer"}
        with pytest.raises(RunError) as caught:
            load_stored(config, kind)
        said = str(caught.value)
        assert f"holds a {names[stored]}," in said and f"a {names[kind]};" in said and len(said.splitlines()) == 1
