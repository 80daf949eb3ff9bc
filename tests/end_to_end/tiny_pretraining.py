"""A pretraining file small enough to be trained in seconds, with a text and a tokenizer of its own."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load
from tiny_run import Document, replaced
from tokenizers import Tokenizer, models, pre_tokenizers

from vpd.config.document import write_document

WORDS = [f"w{k}" for k in range(14)]


def write_tokenizer(path: Path) -> Path:
    """One token a word; token 0 ends a text, 1 is any other word."""
    vocabulary = {token: k for k, token in enumerate(["<|endoftext|>", "<other>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


def write_texts(folder: Path, count: int = 60) -> Path:
    """Texts in which nine words of ten repeat the last but one, which pairs of neighbours don't tell."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        words = [str(word) for word in rng.choice(WORDS, 2)]
        for _ in range(120):
            words.append(words[-2] if rng.random() < 0.9 else str(rng.choice(WORDS)))
        (folder / f"{number:03d}.txt").write_text(" ".join(words))
    return folder


def pretraining(folder: Path, **changes: object) -> Document:
    """The tiny file with dotted keys replaced, dots written as two underscores; text and tokenizer are made."""
    if not (folder / "texts").exists():
        write_texts(folder / "texts")
        write_tokenizer(folder / "tokenizer.json")
    document: Document = {
        "target": {"model_class": "LlamaSimpleMLP", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_intermediate": 32},
        "data": {
            "dataset_name": str(folder / "texts"),
            "tokenizer_name": str(folder / "tokenizer.json"),
            "max_seq_len": 17,
        },
        "optimizer": {"lr_schedule": {"start_val": 2e-2, "warmup_pct": 0.1, "fn_type": "cosine"}, "weight_decay": 0.1},
        "steps": 60,
        "batch_size": 8,
        "cadence": {"train_log_every": 5, "save_every": 20},
        "eval": {"batch_size": 8, "n_steps": 2, "every": 20},
        "samples": {"every": 30, "n_prompts": 2, "prompt_tokens": 4, "length": 6},
    }
    return replaced(document, changes)


def write_pretraining(folder: Path, **changes: object) -> Path:
    """The tiny file on disk."""
    path = folder / "small.yaml"
    path.write_text(write_document(pretraining(folder, **changes)))
    return path


def records(run_dir: Path) -> list[Document]:
    """All records, without what depends on the clock."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    clock = ("time", "tokens_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def assert_same_pretraining(a: Path, b: Path) -> None:
    """The same weights and moments to the bit, the same records, nothing half-written."""
    last = max(int(p.name) for p in (a / "checkpoints").iterdir() if p.name.isdecimal())
    files = [f"checkpoints/{last}/{name}" for name in ("model.safetensors", "training.safetensors")]
    for name in ("model.safetensors", *files):
        one, two = (load((run / name).read_bytes()) for run in (a, b))
        assert one.keys() == two.keys()
        for key in one:
            assert one[key].tobytes() == two[key].tobytes(), (name, key)
    assert records(a) == records(b)
    for run in (a, b):
        assert [p.name for p in run.rglob(".*")] == [".lock"]
        assert json.loads((run / "run.json").read_bytes())["status"] == "finished"
