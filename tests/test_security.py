"""What comes from outside can't run code or write outside its folder, nothing listens unasked, secrets stay out."""

import ast
import json
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

from vpd import ConfigError, RunError, VpdError, hosts, read_run_file
from vpd.analysis.artefacts import artefact_path
from vpd.config.targets import FileSpec
from vpd.data.folder_lock import held
from vpd.data.packages import package_place
from vpd.run_directory import RunDirectory
from vpd.targets.checkpoint import open_checkpoint
from vpd.targets.checkpoint.packages import open_glassllm

SRC = Path(__file__).parents[1] / "src" / "vpd"
RUNS_CODE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "tarfile"}
SIZES = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_no_module_unpickles_or_unpacks(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & RUNS_CODE
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert called not in ("eval", "exec", "torch.load", "np.fromfile", "shutil.unpack_archive")
        assert given.get("allow_pickle", "False") == "False"  # which is its default
        assert called != "YAML" or given.get("typ") == "'safe'"
        assert given.get("shell", "False") == "False" and not called.endswith(".extractall")


def test_a_pickle_in_the_place_of_weights_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    with pytest.raises(RunError, match="can't be read as safetensors"):
        open_checkpoint(FileSpec(kind="file", path=str(tmp_path), model_class="LlamaForCausalLM"))
    bomb = np.empty(1, object)
    bomb[0] = Bomb(mark)
    np.savez(tmp_path / "weights.npz", __config__=bomb, **{"blocks.0.ffn.W1": np.zeros((2, 2), np.float16)})
    with pytest.raises(RunError, match="can't be read as glassllm's weights"):
        open_glassllm(tmp_path / "weights.npz")
    assert not mark.exists()
    np.load(tmp_path / "weights.npz", allow_pickle=True)["__config__"]
    assert mark.exists()  # it would have


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/hostname", "a/b.safetensors", 5])
def test_an_index_names_files_beside_it_alone(name: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    with pytest.raises(RunError, match="which is no file beside it"):
        open_checkpoint(FileSpec(kind="file", path=str(tmp_path), model_class="LlamaForCausalLM"))


@pytest.mark.parametrize("inside", ["../numpy/version.py", "/etc/hostname", "a/../../numpy"])
def test_a_package_holds_what_lies_inside_it_alone(inside: str) -> None:
    with pytest.raises(VpdError, match="name a path inside it"):
        package_place(f"package:jax/{inside}")
    assert package_place("package:jax/numpy/../version.py")[1].name == "version.py"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".x", "..", ""])
def test_what_analyses_write_lies_in_the_run_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="can't be the name of a folder"):
        artefact_path(tmp_path, "harvest", name)


def test_a_link_in_a_folder_from_outside_is_not_written_through(tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "run"
    folder.mkdir()
    mine.write_text("kept")
    for name in (".lock", "metrics.jsonl"):
        (folder / name).symlink_to(mine)
    with (
        pytest.raises(RunError, match="is a link to another file, which is not followed"),
        RunDirectory(folder).locked(),
    ):
        pass
    with pytest.raises(RunError, match="is a link to another file"), held(folder, wait=False, done=lambda: False):
        pass
    with pytest.raises(OSError, match="symbolic links"):
        RunDirectory(folder).append_record({"step": 1})
    assert mine.read_text() == "kept"


def test_sweeping_a_run_directory_removes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.1").symlink_to(tmp_path / "mine")
    RunDirectory(tmp_path / "run").sweep()
    assert list((tmp_path / "run").iterdir()) == [] and (tmp_path / "mine" / "file").exists()


@pytest.mark.parametrize(
    ("coordinator", "local"), [("127.0.0.1:5", True), ("localhost:5", True), ("10.1.2.3:5", False)]
)
def test_processes_on_loopback_listen_there_alone(
    coordinator: str, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **given: asked.update(given))
    monkeypatch.setattr(hosts._jax, "make_gloo_tcp_collectives", lambda **given: asked.update(given))
    hosts.join(coordinator, 2, 0)
    hosts._jax.make_gloo_tcp_collectives(distributed_client=None)
    assert asked["coordinator_bind_address"] == (coordinator if local else None)
    assert asked.get("hostname") == ("127.0.0.1" if local else None)


@pytest.mark.parametrize(
    "secret",
    [
        "https://someone:word@host.org/data.parquet",
        "https://token@host.org/data",
        "s3://key:secret@bucket/data",
        "https://host.org/data.parquet?X-Amz-Signature=abc",
        "hf_abcdefghijklmnopqrstuvwxyz012345",
        "runs of 0123456789abcdef",
    ],
)
def test_a_run_file_with_credentials_is_refused_without_showing_them(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    with pytest.raises(ConfigError, match="holds a password or a token") as refused:
        read_run_file({"data": {"dataset_name": secret}})
    assert str(refused.value).startswith("data.dataset_name: ") and secret not in str(refused.value)
