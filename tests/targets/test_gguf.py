"""GGUF: every quantisation that is read, rotary pairs put in order, edited models written back."""

from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from objective.scenes import normal
from targets.language_models import llama, same, spread

from vpd.config.targets import FileSpec
from vpd.errors import RunError
from vpd.rotary import Scaling
from vpd.targets import Llama, init_llama
from vpd.targets.checkpoint import load_language_model, open_path, read_model
from vpd.targets.checkpoint.gguf_file import save_gguf

D, HEADS, KV, HALF = 256, 4, 2, 4
SIZES = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": D,
    "feed_forward_length": 32,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV,
    "attention.key_length": 2 * HALF,
    "rope.dimension_count": 2 * HALF,
}
MATRICES = {
    "token_embd": (16, D),
    "blk.0.attn_q": (HEADS * 2 * HALF, D),
    "blk.0.attn_k": (KV * 2 * HALF, D),
    "blk.0.attn_v": (KV * 2 * HALF, D),
    "blk.0.attn_output": (D, HEADS * 2 * HALF),
    "blk.0.ffn_gate": (32, D),
    "blk.0.ffn_up": (32, D),
    "blk.0.ffn_down": (D, 32),
}
VECTORS = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
Q4_K_BYTES, Q6_K_BYTES = 144, 210


def file_of(
    path: Path, kind: str = "F32", change=lambda w: None, drop: tuple[str, ...] = (), arch: str = "llama"
) -> dict:
    """A small file whose wide matrices are of one type; returns what was quantised, by tensor name."""
    writer, arrays = GGUFWriter(path, arch), {}
    for key, value in SIZES.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.rope.freq_base", 1000.0)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    change(writer)
    for i, (name, shape) in enumerate(MATRICES.items()):
        if name in drop:
            continue
        value = np.asarray(normal(*shape, key=i))
        arrays[name] = value
        wanted = getattr(GGMLQuantizationType, kind if shape[1] == D else "F32")
        if kind in ("Q4_K", "Q6_K") and shape[1] == D:
            writer.add_tensor(f"{name}.weight", blocks(shape[0], kind, i), raw_dtype=wanted)
        else:
            writer.add_tensor(f"{name}.weight", quantize(value, wanted), raw_dtype=wanted)
    for i, name in enumerate(VECTORS):
        writer.add_tensor(f"{name}.weight", np.asarray(normal(D, key=20 + i)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def blocks(rows: int, kind: str, key: int) -> np.ndarray:
    """Random blocks, one a row, whose scales are small numbers."""
    rng = np.random.default_rng(key)
    scale = rng.uniform(0.01, 0.02, (rows, 2)).astype(np.float16).view(np.uint8).reshape(rows, 4)
    size = Q4_K_BYTES if kind == "Q4_K" else Q6_K_BYTES
    whole = rng.integers(0, 256, (rows, size)).astype(np.uint8)
    if kind == "Q4_K":
        whole[:, :4] = scale
    else:
        whole[:, -2:] = scale[:, :2]
    return whole


def q4_k(block: np.ndarray) -> np.ndarray:
    """One block by the letter of the format: 8 groups of 32, each with a scale and a minimum of 6 bits."""
    d, least = (float(x) for x in block[:4].view(np.float16))
    s, q, out = [int(b) for b in block[4:16]], block[16:], []
    for j in range(8):
        if j < 4:
            scale, minimum = s[j] & 63, s[j + 4] & 63
        else:
            scale, minimum = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4
        codes = q[32 * (j // 2) : 32 * (j // 2) + 32]
        out += [d * scale * (int(c) >> 4 if j % 2 else int(c) & 15) - least * minimum for c in codes]
    return np.array(out)


def q6_k(block: np.ndarray) -> np.ndarray:
    """One block by the letter of the format: 16 groups of 16, 4 low and 2 high bits a code."""
    low, high, scales = block[:128], block[128:192], block[192:208].view(np.int8)
    d, out = float(block[208:].view(np.float16)[0]), np.zeros(256)
    for half in (0, 1):
        for i in range(32):
            a, b, h = int(low[64 * half + i]), int(low[64 * half + i + 32]), int(high[32 * half + i])
            codes = (
                a & 15 | (h & 3) << 4,
                b & 15 | (h >> 2 & 3) << 4,
                a >> 4 | (h >> 4 & 3) << 4,
                b >> 4 | h >> 6 << 4,
            )
            for part, code in enumerate(codes):
                scale = int(scales[8 * half + 2 * part + i // 16])
                out[128 * half + 32 * part + i] = d * scale * (code - 32)
    return out


def unpermuted(stored: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs (0, 1), (2, 3), ... to pairs half a head apart."""
    rows = [h * 2 * HALF + 2 * j + side for h in range(heads) for side in (0, 1) for j in range(HALF)]
    return stored[rows]


# Half a step of each type on numbers up to about 4.
STEPS = {"F32": 0.0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 0.02, "Q4_0": 0.5, "Q4_1": 0.3}


@pytest.mark.parametrize("kind", STEPS)
def test_quantised_weights_are_what_they_stand_for(kind: str, tmp_path: Path) -> None:
    arrays = file_of(tmp_path / "a.gguf", kind)
    spec = FileSpec(kind="file", path=str(tmp_path / "a.gguf"), model_class="transformers.LlamaForCausalLM")
    model, facts = load_language_model(spec)
    assert isinstance(model, Llama) and model.lm_head is None and (model.n_heads, model.n_kv_heads) == (HEADS, KV)
    assert (model.rope_base, model.eps, model.max_len) == (1000.0, 1e-5, 64)
    assert facts.format == "gguf" and facts.quantised is kind.startswith("Q") and facts.storage[kind] >= 6
    layer = model.layers.whole
    want = {
        "q_proj": unpermuted(arrays["blk.0.attn_q"], HEADS),
        "k_proj": unpermuted(arrays["blk.0.attn_k"], KV),
        "v_proj": arrays["blk.0.attn_v"],
        "gate_proj": arrays["blk.0.ffn_gate"],
        "up_proj": arrays["blk.0.ffn_up"],
    }
    for name, value in want.items():
        np.testing.assert_allclose(getattr(layer, name)[0], value.T, rtol=0, atol=STEPS[kind], err_msg=name)
    np.testing.assert_array_equal(layer.down_proj[0], arrays["blk.0.ffn_down"].T)
    np.testing.assert_allclose(model.embed_tokens, arrays["token_embd"], rtol=0, atol=STEPS[kind])
    for i, value in enumerate((layer.input_layernorm[0], layer.post_attention_layernorm[0], model.norm)):
        np.testing.assert_array_equal(value, normal(D, key=20 + i))


@pytest.mark.parametrize(("kind", "one"), [("Q4_K", q4_k), ("Q6_K", q6_k)])
def test_blocks_of_256(kind: str, one, tmp_path: Path) -> None:
    file_of(tmp_path / "a.gguf", kind)
    model = read_model(open_path(tmp_path / "a.gguf"), None, "float32")
    for name, got in {"token_embd": model.embed_tokens, "blk.0.ffn_up": model.layers.whole.up_proj[0].T}.items():
        stored = blocks(MATRICES[name][0], kind, list(MATRICES).index(name))
        np.testing.assert_allclose(got, np.stack([one(row) for row in stored]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_written_is_read_back(tied: bool, scaled: bool, tmp_path: Path) -> None:
    scaling = Scaling(32.0, 1.0, 4.0, 8192) if scaled else None
    model = spread(
        lambda: init_llama(20, 8, 2, 2, 1, 12, 0, tied, head_dim=16, rope_base=5e5, scaling=scaling, max_len=40)
    )
    save_gguf(model, tmp_path / "a.gguf")
    assert same(read_model(open_path(tmp_path / "a.gguf"), None, "float32"), model)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
    with_q = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}["blk.1.attn_q.weight"]
    assert not np.array_equal(with_q.data, model.layers.whole.q_proj[1].T)  # stored in neighbouring pairs
    assert np.array_equal(np.sort(with_q.data, axis=0), np.sort(model.layers.whole.q_proj[1].T, axis=0))


def test_an_edited_model_keeps_the_tokenizer(tmp_path: Path) -> None:
    def words(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b", "ab"])
        writer.add_bos_token_id(1)

    file_of(tmp_path / "a.gguf", "Q8_0", words)
    model = read_model(open_path(tmp_path / "a.gguf"), None, "float32")
    save_gguf(jax.tree.map(lambda x: x * 2, model), tmp_path / "b.gguf", like=tmp_path / "a.gguf", half=True)
    fields = gguf.GGUFReader(tmp_path / "b.gguf").fields
    assert fields["tokenizer.ggml.tokens"].contents() == ["a", "b", "ab"]
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 1
    again = open_path(tmp_path / "b.gguf")
    assert set(again.storage.values()) == {"F16", "F32"} and again.storage["output_norm.weight"] == "F32"
    doubled = read_model(again, None, "float32")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-3, atol=1e-6), doubled, model)


def test_a_scaling_that_gguf_has_no_place_for(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no place for the rotary scaling"):
        save_gguf(llama(), tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def strange_stretch(writer: GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.linspace(1, 7, HALF, dtype=np.float32))


REFUSED = {
    "another network": ({"arch": "qwen2"}, "architecture 'qwen2', and vpd reads GGUF of 'llama' alone"),
    "another type": ({"kind": "Q5_0"}, r"6 of a type that can't be read \(token_embd\.weight Q5_0, "),
    "a missing tensor": ({"drop": ("blk.0.ffn_up",)}, r"1 missing \(blk\.0\.ffn_up\.weight\)"),
    "experts": ({"change": lambda w: w.add_expert_count(8)}, "mixture of experts"),
    "another scaling": ({"change": lambda w: w.add_string("llama.rope.scaling.type", "yarn")}, "by 'yarn'"),
    "another stretch": ({"change": strange_stretch}, "not Llama 3's"),
    "a further tensor": (
        {"change": lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(32, np.float32))},
        r"1 unexpected \(blk\.0\.attn_q\.bias\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path) -> None:
    options, said = REFUSED[name]
    file_of(tmp_path / "a.gguf", **options)
    with pytest.raises(RunError, match=said):
        read_model(open_path(tmp_path / "a.gguf"), None, "float32")


@pytest.mark.parametrize("part", [0.0, 0.0005, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_short(part: float, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    file_of(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(RunError, match=r"a\.gguf can't be read as GGUF .* copy it again"):
        open_path(path)


def test_a_gguf_is_a_llama(tmp_path: Path) -> None:
    file_of(tmp_path / "a.gguf")
    with pytest.raises(RunError, match="describes a Llama, and model_class is 'GPT2'"):
        open_path(tmp_path / "a.gguf", "GPT2")
    with pytest.raises(RunError, match="does not exist"):
        open_path(tmp_path / "b.gguf")
