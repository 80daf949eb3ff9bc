"""`vpd pretrain`: trained, interrupted, gone on with, read as a target, refused."""

import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_pretraining import assert_same_pretraining, pretraining, records, write_pretraining
from tiny_run import Vpd, finish, one_line, start, tiny, tree

from vpd.config import read_pretraining_file
from vpd.config.document import write_document
from vpd.config.targets import PretrainedSpec
from vpd.errors import NonFiniteError
from vpd.pretrain import pretrain
from vpd.pretrain.checkpoint import PretrainCheckpoints
from vpd.run_directory import RunDirectory
from vpd.targets.checkpoint import load_language_model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny text, its tokenizer and the tiny file."""
    folder = tmp_path_factory.mktemp("text")
    write_pretraining(folder)
    return folder


@pytest.fixture(scope="module")
def trained(text: Path, own_cache: Path) -> Path:
    """The run directory of the tiny file, trained without interruption."""
    with jax.numpy_dtype_promotion("standard"):
        config = read_pretraining_file(text / "small.yaml").config
        config = config.model_copy(update={"out_dir": str(text / "whole"), "run_id": "small"})
        return pretrain(config, quiet=True).directory.path


def test_what_a_run_leaves(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {
        "config.json", "config.yaml", "model.safetensors", "run.json", "metrics.jsonl", "checkpoints", "report.html",
        ".lock",
    }  # fmt: skip
    kinds = {kind: [r["step"] for r in records(trained) if r["kind"] == kind] for kind in ("train", "eval", "samples")}
    assert kinds == {"train": [*range(0, 60, 5), 59], "eval": [0, 20, 40, 60], "samples": [30, 60]}
    facts = json.loads((trained / "run.json").read_bytes())
    losses = [r["metrics"]["loss"] for r in records(trained) if r["kind"] == "eval"]
    assert losses[0] == pytest.approx(np.log(16), abs=0.1) and losses[-1] < losses[0] - 0.2
    assert facts["validation"] == losses[-1]
    for name in ("unigram", "bigram"):  # neighbours tell nothing in this text
        assert facts["baselines"][name] == pytest.approx(np.log(16), abs=0.2)
        assert losses[-1] < facts["baselines"][name]
    assert (facts["vocab_size"], facts["kind"], facts["target"]) == (16, "pretraining", "LlamaSimpleMLP")
    sample = next(r for r in records(trained) if r["kind"] == "samples")["samples"][0]
    assert len(sample["prompt"].split()) == 4 and len(sample["text"].split()) == 6
    page = (trained / "report.html").read_text()
    assert "data:image/png" in page and sample["prompt"] in page and f"{losses[-1]:.3f}" in page


def test_the_last_checkpoint_is_the_published_model(trained: Path) -> None:
    published, last = (trained / "model.safetensors"), trained / "checkpoints" / "60"
    assert published.read_bytes() == (last / "model.safetensors").read_bytes()
    for folder in (trained, last):
        spec = PretrainedSpec(kind="pretrained", model_class="LlamaSimpleMLP", run_path=str(folder))
        model, facts = load_language_model(spec)
        assert list(model.matrices())[1] == "h.0.attn.q_proj" and model.max_len == 16
        assert facts.values["tokenizer_name"].endswith("tokenizer.json")


def test_a_finished_run_is_left_alone(trained: Path, vpd: Vpd) -> None:
    before = tree(trained)
    called = vpd("pretrain", trained, "--quiet")
    assert called.code == 0 and "finished already" in called.err
    assert called.out.splitlines()[-1] == str(trained)
    assert f"validation loss: {json.loads((trained / 'run.json').read_bytes())['validation']:.4f}" in called.out
    assert tree(trained) == before


class Died(BaseException):
    """Stands for a process that is gone."""


@pytest.mark.parametrize(
    ("owner", "name", "call", "before"),
    [
        pytest.param(PretrainCheckpoints, "save", 2, True, id="before a save"),
        pytest.param(RunDirectory, "append_record", 13, False, id="in the middle"),
        pytest.param(PretrainCheckpoints, "save", 3, False, marks=pytest.mark.slow, id="after the last save"),
    ],
)
def test_going_on_after_dying(
    owner: type, name: str, call: int, before: bool, text: Path, trained: Path, tmp_path: Path, vpd: Vpd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    original, calls = getattr(owner, name), [0]

    def dying(*arguments: object) -> None:
        calls[0] += 1
        if before and calls[0] == call:
            raise Died
        original(*arguments)
        if calls[0] == call:
            raise Died

    config = read_pretraining_file(text / "small.yaml").config
    config = config.model_copy(update={"out_dir": str(tmp_path), "run_id": "small"})
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Died):
            pretrain(config, quiet=True)
    (tmp_path / "small" / "checkpoints" / ".40.1").mkdir(parents=True, exist_ok=True)
    called = vpd("pretrain", text / "small.yaml", "--out-dir", tmp_path, "--quiet")
    assert called.code == 0, called.err
    assert_same_pretraining(trained, tmp_path / "small")


def test_a_signal_saves_and_the_same_command_goes_on(
    text: Path, trained: Path, tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = RunDirectory.append_record, [0]

    def append(self: RunDirectory, record: dict[str, object]) -> None:
        original(self, record)
        count[0] += 1
        if count[0] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_record", append)
        stopped = vpd("pretrain", text / "small.yaml", "--out-dir", tmp_path, "--quiet")
    run = tmp_path / "small"
    assert stopped.code == 75, stopped.err
    assert f"vpd pretrain {run}" in stopped.err and "Traceback" not in stopped.err
    assert stopped.out.splitlines()[-1] == str(run)
    assert json.loads((run / "run.json").read_bytes())["status"] == "stopped"
    assert len(list((run / "checkpoints").iterdir())) in (1, 2)
    assert vpd("pretrain", run, "--quiet").code == 0
    assert_same_pretraining(trained, run)


@pytest.mark.slow
def test_killed_twice(text: Path, trained: Path, tmp_path: Path, vpd: Vpd) -> None:
    """SIGKILL to a process, while it saves and some steps later."""
    file = write_pretraining(text, steps=60)
    run = tmp_path / "small"
    for saved in (20, 40):
        process = start("pretrain", file, "--out-dir", tmp_path, "--quiet")
        while not (run / "checkpoints" / str(saved)).exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        code, _, err = finish(process)
        assert code in (-signal.SIGKILL, 0), err
    assert vpd("pretrain", file, "--out-dir", tmp_path, "--quiet").code == 0
    assert_same_pretraining(trained, run)


def test_a_loss_that_is_not_finite_stops_the_run(text: Path, tmp_path: Path, own_cache: Path) -> None:
    config = read_pretraining_file(text / "small.yaml").config
    schedule = config.optimizer.lr_schedule.model_copy(update={"start_val": 1e30, "warmup_pct": 0.0})
    optimizer = config.optimizer.model_copy(update={"lr_schedule": schedule})
    config = config.model_copy(update={"optimizer": optimizer, "out_dir": str(tmp_path), "run_id": "wild"})
    with pytest.raises(NonFiniteError, match=r"is not finite at step \d+; lower the learning rate"):
        pretrain(config, quiet=True)
    assert json.loads((tmp_path / "wild" / "run.json").read_bytes())["status"] == "failed"
    assert not list((tmp_path / "wild").glob("checkpoints/*"))


def test_it_is_decomposed(trained: Path, text: Path, tmp_path: Path, vpd: Vpd) -> None:
    """The run directory is what ``target.spec`` of a run file names."""
    document = tiny(
        target={"spec": {"kind": "pretrained", "model_class": "LlamaSimpleMLP", "run_path": str(trained)}},
        data={
            "dataset_name": str(text / "texts"),
            "tokenizer_name": str(text / "tokenizer.json"),
            "max_seq_len": 16,
        },
        pd__decomposition_targets=[{"module_pattern": "h.*.mlp.*", "C": 6}],
        pd__steps=4,
        pd__batch_size=4,
        pd__faithfulness_warmup_steps=2,
        eval={"batch_size": 4, "n_steps": 1, "every": 4, "slow_every": 4,
              "metrics": [{"type": "CEandKLLosses", "rounding_threshold": 0.0}]},
    )  # fmt: skip
    del document["pd"]["loss_metrics"][3]
    file = tmp_path / "taken.yaml"
    file.write_text(write_document(document))
    called = vpd("train", file, "--out-dir", tmp_path, "--quiet")
    assert called.code == 0, called.err
    lines = [json.loads(line) for line in (tmp_path / "taken" / "metrics.jsonl").read_text().splitlines()]
    last = next(r for r in reversed(lines) if r["kind"] == "eval")["metrics"]
    validation = json.loads((trained / "run.json").read_bytes())["validation"]
    found = next(value for name, value in last.items() if name.endswith("/ce_target"))
    assert found == pytest.approx(validation, abs=0.5)  # other rows of the same split


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target__vocab_size": 9}, "holds the token id"),
        ({"data__tokenizer_name": "nowhere.json"}, "there is no such file"),
        ({"data__dataset_name": "nowhere"}, "nowhere"),
        ({"samples": {"every": 9, "prompts": ["w1 " * 20], "length": 3}}, "samples.prompts[0]: its 20 tokens"),
        ({"samples": {"every": 9, "prompts": [" "], "length": 3}}, "samples.prompts[0]: the tokenizer makes no token"),
    ],
)
def test_what_can_not_be_trained_leaves_nothing(
    changes: dict[str, object], says: str, text: Path, tmp_path: Path, vpd: Vpd
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(write_document(pretraining(text, **changes)))
    called = vpd("pretrain", file, "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 2 and says in one_line(called.err), called.err
    assert not (tmp_path / "runs").exists()


def test_other_runs_in_the_directory_are_refused(text: Path, trained: Path, tmp_path: Path, vpd: Vpd) -> None:
    other = vpd("pretrain", text / "small.yaml", "--out-dir", trained.parent, "--seed", 5, "--quiet")
    assert other.code == 2 and "other values of seed" in one_line(other.err)
    file = tmp_path / "small.yaml"
    file.write_text(write_document(tiny()))
    taken = vpd("train", file, "--out-dir", trained.parent, "--quiet")
    assert taken.code == 2 and "holds a pretraining run" in one_line(taken.err)
    wrong = vpd("pretrain", file, "--quiet")
    assert wrong.code == 2 and "vpd train" in one_line(wrong.err)


def test_config_check_and_report_know_it(text: Path, trained: Path, vpd: Vpd) -> None:
    called = vpd("config", "check", text / "small.yaml")
    assert called.code == 0 and called.out.strip().endswith("ok")
    before = (trained / "report.html").read_text()
    called = vpd("report", trained)
    assert called.code == 0 and (trained / "report.html").read_text() == before
