"""Edits in the weights themselves, and the checkpoint that the target's own loader reads."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vpd.analysis.artefacts import new_artefact
from vpd.analysis.editing.edits import Edit, RankOne
from vpd.analysis.run import Run
from vpd.errors import RunError
from vpd.run_directory import write_atomically
from vpd.targets import GPT2, TMS, Induction, LanguageModel, Llama, LlamaSimpleMLP, ResidMLP
from vpd.targets.base import pre_identity
from vpd.targets.checkpoint import save_language_model
from vpd.targets.gpt2 import MATRICES
from vpd.targets.layers import Layers
from vpd.targets.weights import Toy, target_bytes

SCHEMA = 1
# What a tied head shares, by its path.
HEAD = "lm_head"
_EMBEDDINGS: Mapping[type, Mapping[str, str]] = {
    LlamaSimpleMLP: {"wte": "wte"},
    Llama: {"model.embed_tokens": "embed_tokens"},
    GPT2: {"transformer.wte": "wte", "transformer.wpe": "wpe"},
}

Deltas = Mapping[str, Float[np.ndarray, "d_in d_out"]]
Network = TypeVar("Network", bound=eqx.Module)


def save_edited(run: Run, edits: Sequence[Edit], added: Mapping[str, list[RankOne]], path: Path) -> Path:
    """Write the network with the edits in its weights, whole or not at all.

    A language model becomes ``model.safetensors`` and ``config.json``, which ``target.spec: {kind: file, path: ...}``
    reads; a toy ``target.safetensors``, which ``target.run_path`` reads. ``meta.json`` beside it says what was edited.
    Sums are made in float32 and rounded once to the type of the weights.

    Args:
        run: opened.
        edits: for the record.
        added: what they add to each matrix.
        path: the folder to make.

    Raises:
        RunError: edits that hold at some positions or inputs alone, a path that is taken or can't be written, or a
            network whose weights can't take the edit.
    """
    refuse_unsavable(run, edits, path)
    target = run.experiment.target
    assert isinstance(target, Toy | LanguageModel)
    network = with_added(target, _deltas(run, added))
    with new_artefact(path, SCHEMA, run.origin, {"edits": [edit.as_record() for edit in edits]}) as folder:
        if isinstance(network, LanguageModel):
            save_language_model(network, folder)
        else:
            write_atomically(folder / "target.safetensors", target_bytes(network))
    return path


def refuse_unsavable(run: Run, edits: Sequence[Edit], path: Path) -> None:
    """Find out before long work starts whether edits could be saved there.

    Raises:
        RunError: as :func:`save_edited`.
    """
    for edit in edits:
        if not edit.everywhere:
            raise RunError(
                f"{edit.subcomponent} is edited at some positions or inputs alone, which no weight can say; "
                "leave --save out, or edit it everywhere"
            )
    if not isinstance(run.experiment.target, Toy | LanguageModel):
        name = type(run.experiment.target).__name__
        raise RunError(f"{run.path} decomposes a {name}, whose parameters are not vpd's to write; leave --save out")
    if path.exists():
        raise RunError(f"{path} is there already; give another --save, nothing is overwritten")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise RunError(f"can't write {path} ({parent} is no writable folder); give another --save")


def _deltas(run: Run, added: Mapping[str, list[RankOne]]) -> Deltas:
    """What is added to each matrix of the network."""
    whole = {site: _sum(ones) for site, ones in added.items()}
    found = {site: delta for site, delta in whole.items() if not site.endswith(pre_identity(""))}
    for site in whole.keys() - found.keys():
        matrix = site.removesuffix(pre_identity(""))
        raise RunError(
            f"{site} is an identity that the decomposition inserted, and the network has no weight for it; "
            f"edit {matrix} instead, or leave --save out"
        )
    return found


def _sum(ones: Sequence[RankOne]) -> Float[np.ndarray, "d_in d_out"]:
    """``Σ weight · v ⊗ u``."""
    V, U = np.stack([one.v for one in ones], axis=1), np.stack([one.u for one in ones])
    return (V * np.asarray([one.weight for one in ones], np.float32)) @ U


def with_added(target: Toy | LanguageModel, deltas: Deltas) -> Toy | LanguageModel:
    """The network with these added to its matrices, by their paths.

    A head that was the transposed embedding gets its own matrix where either is edited.

    Raises:
        RunError: an induction transformer whose embedding or head is edited, which share one matrix for good.
    """
    match target:
        case TMS():
            return _tms(target, deltas)
        case ResidMLP():
            layers = tuple(_fields(layer, f"layers.{i}.", deltas) for i, layer in enumerate(target.layers))
            return replace(target, layers=layers)
        case Induction():
            shared = [name for name in ("wte", HEAD) if name in deltas]
            if shared:
                raise RunError(
                    f"{shared[0]} can't be edited in the weights of an induction transformer, whose embedding and head "
                    "are one matrix; leave --save out"
                )
            layers = tuple(_fields(layer, f"h.{i}.attn.", deltas) for i, layer in enumerate(target.layers))
            return replace(target, layers=layers)
        case LlamaSimpleMLP() | Llama() | GPT2():
            return _language_model(target, deltas)


def _plus(weight: Float[Array, "..."], delta: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
    return (weight.astype(jnp.float32) + delta).astype(weight.dtype)


def _fields(layer: Network, path: str, deltas: Deltas) -> Network:
    """A layer whose fields are called as the ends of their paths."""
    own = {name.removeprefix(path): delta for name, delta in deltas.items() if name.startswith(path)}
    return replace(layer, **{name: _plus(getattr(layer, name), delta) for name, delta in own.items()})


def _tms(target: TMS, deltas: Deltas) -> TMS:
    first, second = target.linear1, target.linear2
    if second is None and ("linear1" in deltas or "linear2" in deltas):
        second = first.T
    hidden = tuple(
        _plus(weight, deltas[f"hidden_layers.{i}"]) if f"hidden_layers.{i}" in deltas else weight
        for i, weight in enumerate(target.hidden_layers)
    )
    first = _plus(first, deltas["linear1"]) if "linear1" in deltas else first
    second = _plus(second, deltas["linear2"]) if second is not None and "linear2" in deltas else second
    return replace(target, linear1=first, hidden_layers=hidden, linear2=second)


def _language_model(model: LanguageModel, deltas: Deltas) -> LanguageModel:
    embeddings = _EMBEDDINGS[type(model)]
    tokens = next(iter(embeddings.values()))
    changed: dict[str, object] = {"layers": _layers(model, deltas)}
    head = model.lm_head
    if head is None and (HEAD in deltas or next(iter(embeddings)) in deltas):
        head = getattr(model, tokens).T
    if head is not None:
        changed["lm_head"] = _plus(head, deltas[HEAD]) if HEAD in deltas else head
    for path, name in embeddings.items():
        if path in deltas:
            changed[name] = _plus(getattr(model, name), deltas[path])
    return replace(model, **changed)


def _layers(model: LanguageModel, deltas: Deltas) -> Layers:
    """All layers as one stack, with what is added to them."""
    layers = model.layers
    stack = layers.whole
    for path, delta in deltas.items():
        if not path.startswith(f"{layers.prefix}."):
            continue
        number, _, local = path.removeprefix(f"{layers.prefix}.").partition(".")
        name = MATRICES[local] if isinstance(model, GPT2) else local.rpartition(".")[2]
        whole = getattr(stack, name)
        stack = replace(stack, **{name: whole.at[int(number)].set(_plus(whole[int(number)], delta))})
    return Layers((jax.tree.map(jnp.asarray, stack),), layers.prefix)
