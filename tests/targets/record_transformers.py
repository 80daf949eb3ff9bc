"""Writes tests/targets/recorded/*.npz: small networks of transformers and what they compute.

Run it where torch and transformers are installed: ``python tests/targets/record_transformers.py``. Every parameter is
drawn, norms and biases too, and the weights are recorded with the logits: the files don't depend on a generator.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

FOLDER = Path(__file__).parent / "recorded"
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SHARED = {"vocab_size": 48, "bos_token_id": 0, "eos_token_id": 0}


def networks() -> dict[str, PreTrainedModel]:
    llama = LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=5000.0,
        rope_scaling={"rope_type": "llama3", **SCALING},
        tie_word_embeddings=False,
        **SHARED,
    )
    gpt2 = GPT2Config(n_embd=24, n_layer=2, n_head=4, n_positions=64, **SHARED)
    return {"llama": LlamaForCausalLM(llama), "gpt2": GPT2LMHeadModel(gpt2)}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    for name, network in networks().items():
        for path, value in network.named_parameters():
            value.data.normal_(mean=float("norm.weight" in path or ".ln_" in path), std=0.2)
        tokens = torch.randint(48, (2, 48))
        with torch.no_grad():
            logits = network.eval()(tokens).logits.numpy()
        with tempfile.TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            weights = load_file(Path(folder) / "model.safetensors")
            config = json.loads((Path(folder) / "config.json").read_text())
        arrays = {f"weights/{key}": value for key, value in weights.items()}
        np.savez_compressed(
            FOLDER / f"{name}.npz", config=json.dumps(config), tokens=tokens.numpy(), logits=logits, **arrays
        )


if __name__ == "__main__":
    main()
