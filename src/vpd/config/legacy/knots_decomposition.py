"""What is decomposed, and the CI function, in the knots vocabulary: kinds of model become module patterns."""

from collections.abc import Mapping

from vpd.config.block import choose, show
from vpd.config.importance import Attention, SimpleTransformer
from vpd.config.legacy.draft import Path
from vpd.config.legacy.rules import Field, Table, each, gone, inside, marks, to, walk
from vpd.config.values import is_block

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MODELS: Mapping[str, Mapping[str, str]] = {
    "simple_mlp": {
        **{name: f"h.*.attn.{name}" for name in _ATTENTION},
        **{name: f"h.*.mlp.{name}" for name in ("c_fc", "down_proj")},
    },
    "glu_transformer": {
        **{name: f"model.layers.*.self_attn.{name}" for name in _ATTENTION},
        **{name: f"model.layers.*.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
    },
}
_SITES, _CI = ("pd", "decomposition_targets"), ("pd", "ci_config")
_TRANSFORMER = "simple_transformer_ci_cfg"
_STARTS = ("normal", "svd")


def _site_name(field: Field) -> None:
    if isinstance(field.value, str) and set(field.value) & set("*?["):
        field.refuse(f"{show(field.value)} has a character that today's patterns read as a glob", "module_pattern")
    else:
        field.move("module_pattern")


def _cs(patterns: Mapping[str, str]) -> Table:
    """One rule for each kind of matrix in a block."""

    def put(field: Field) -> None:
        cs = _block_at(field, field.old[:-1])
        index = [name for name in cs if name in patterns and cs[name] is not None].index(str(field.old[-1]))
        at: Path = (*_SITES, index)
        values: dict[Path, object] = {
            (*at, "module_pattern"): patterns[str(field.old[-1])],
            (*at, "C"): field.value,
        }
        field.draft.compute(field.old, field.value, "the matrices of that name in all layers, and their C", values)

    return dict.fromkeys(patterns, put)


def _initialization(field: Field) -> None:
    if field.value in _STARTS:
        field.draft.move(field.old, field.value, ("pd", "initialization"))
    else:
        said = f"{show(field.value)} is not a start of V and U here; {choose(field.value, _STARTS)}"
        field.draft.refuse(field.old, field.value, said, ("pd", "initialization"))


def _sites(field: Field) -> None:
    block = field.value
    kind = block.get("kind") if is_block(block) else None
    table: Table
    if isinstance(kind, str) and kind == "explicit":
        site = inside({"name": _site_name, "C": to("C")})
        table = {"sites": each("decomposition_targets", site)}
    elif isinstance(kind, str) and kind in _MODELS:
        table = {
            "layers": inside({"kind": marks("all", "the patterns match every layer", "decomposition_targets")}),
            "cs": inside(_cs(_MODELS[kind])),
        }
    else:
        said = f"kind {show(kind)} of sites is not known; {choose(kind, ('explicit', *_MODELS))}"
        field.draft.refuse(field.old, block, said, _SITES)
        return
    assert is_block(block)
    shared: Table = {
        "kind": marks(kind, "the patterns say which matrices", "decomposition_targets"),
        "initialization": _initialization,
    }
    walk(field.draft, block, field.old, ("pd",), {**shared, **table})


def _layerwise(field: Field) -> None:
    field.compute("mode and function in one word", {"mode": "layerwise", "fn_type": "mlp"})
    field.draft.notice(
        "ci.type layerwise_mlp is read as mode layerwise, fn_type mlp, one MLP for each subcomponent; "
        "write fn_type: shared_mlp in the new file if one for each site was meant."
    )


def _blocks_per_chunk(field: Field) -> None:
    sites = _block_at(field, ("decomposition", "sites"))
    cs = sites.get("cs")
    blocks = field.value
    if not is_block(cs) or isinstance(blocks, bool) or not isinstance(blocks, int):
        field.refuse("how many sites a block has is only known where sites are given by kind of model", "")
        return
    per_block = sum(C is not None for C in cs.values())
    field.compute(f"blocks of {per_block} sites", {"sites_per_chunk": blocks * per_block})


def _ci(field: Field) -> None:
    kind = field.value.get("type") if is_block(field.value) else None
    if isinstance(kind, str) and kind in _CI_TABLES and is_block(field.value):
        walk(field.draft, field.value, field.old, _CI, _CI_TABLES[kind])
        return
    for inner, value in field.value.items() if is_block(field.value) else ():
        said = f"there is no CI function {show(kind)} here; {choose(kind, _CI_TABLES)}"
        says = said if inner == "type" else f"it belongs to {show(kind)}, which is refused"
        field.draft.refuse((*field.old, inner), value, says, _CI)
    if not is_block(field.value) or not field.value:
        field.draft.refuse(field.old, field.value, "expected a block with type", _CI)


def _block_at(field: Field, path: Path) -> Mapping[str, object]:
    found: object = field.draft.given
    for part in path:
        found = found.get(str(part)) if is_block(found) else None
    return found if is_block(found) else {}


_MASK = "the transformer here sees both ways"
_CHUNK_ATTENTION: Table = {
    "kind": marks("mha", "multi-head attention, as here", "n_heads"),
    "mask": gone(_MASK),
    "implementation": gone("attention is computed in one way"),
    **{name: to(name) for name in Attention.model_fields},
}
_FFN: Table = {
    "kind": marks("gelu", "an MLP with GELU, as here", f"{_TRANSFORMER}.mlp_hidden_dim"),
    "hidden": lambda field: field.compute("a list of widths", {f"{_TRANSFORMER}.mlp_hidden_dim": [field.value]}),
}
_CI_TABLES: Mapping[str, Table] = {
    "layerwise_mlp": {"type": _layerwise, "hidden_dims": to("hidden_dims")},
    "chunkwise_transformer": {
        "type": lambda field: field.compute(
            "mode and function in one word", {"mode": "chunkwise", "fn_type": "chunkwise_transformer"}
        ),
        "blocks_per_chunk": _blocks_per_chunk,
        "sites_per_chunk": to("sites_per_chunk"),
        "input_tap": gone("a CI function reads the inputs of its sites"),
        **{name: to(f"{_TRANSFORMER}.{name}") for name in SimpleTransformer.model_fields if name != "attn_config"},
        "attention": inside(_CHUNK_ATTENTION, f"{_TRANSFORMER}.attn_config"),
        "ffn": inside(_FFN),
    },
}
DECOMPOSITION: Table = {"sites": _sites, "ci": _ci}
