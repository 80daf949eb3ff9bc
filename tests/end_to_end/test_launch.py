"""``vpd launch``: what it checks, what it shows, and a run that is preempted and ends as if it had not been."""

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_run import Vpd, assert_same_run, one_line, saved_steps, tree, write_file

RUN = Path("runs") / "tiny"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_shows_what_would_be_submitted_and_writes_nothing(tmp_path: Path, vpd: Vpd) -> None:
    write_file(tmp_path)
    before = tree(tmp_path)
    asked = ("--nodes", 2, "--gpus", 4, "--time", "2-0", "--partition", "gpu", "--slurm", "qos=high", "--dry-run")
    code, out, err = vpd("launch", "tiny.yaml", *asked)
    assert (code, err) == (0, "")
    for shown in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=2880", "--partition=gpu", "--qos"):
        assert f"#SBATCH {shown}" in out
    assert f"{sys.executable} -P -m vpd train {tmp_path / 'runs' / 'tiny.launch'}" in out and "--distributed" in out
    assert out.splitlines()[-1] == str(tmp_path / RUN)
    assert tree(tmp_path) == before


def test_a_job_is_handed_to_sbatch(tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch) -> None:
    bin = slurm(tmp_path, 'cp "$1" ../got.sh; echo Submitted batch job 4242')
    monkeypatch.setenv("PATH", f"{bin}:/bin:/usr/bin")
    write_file(tmp_path)
    code, out, _ = vpd("launch", "tiny.yaml", "--time", 60, "--name", "mine")
    assert code == 0 and "submitted as job 4242" in out
    assert "#SBATCH --job-name=mine" in (tmp_path / "got.sh").read_text()
    folder = tmp_path / "runs" / "tiny.launch"
    assert {path.name.split("-")[0] for path in folder.glob("*.*")} >= {
        "4242_submission.sh",
        "4242_submitted.pkl",
        "config",
    }
    assert not (tmp_path / RUN).exists()


def test_a_refused_job_leaves_one_sentence(tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch) -> None:
    bin = slurm(tmp_path, "echo 'sbatch: error: invalid partition specified: moon' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{bin}:/bin:/usr/bin")
    write_file(tmp_path)
    code, _, err = vpd("launch", "tiny.yaml", "--time", 60, "--partition", "moon")
    assert code == 2 and "invalid partition specified: moon" in one_line(err)
    assert [path.suffix for path in (tmp_path / "runs" / "tiny.launch").iterdir()] == [".yaml"]


def slurm(folder: Path, sbatch: str) -> Path:
    """Programs of these names, of which ``sbatch`` does what is said in the folder of the run directories."""
    bin = folder / "bin"
    bin.mkdir()
    for name, does in {"sbatch": f"cd {folder}/runs 2>/dev/null; {sbatch}", "srun": "exit 1"}.items():
        (bin / name).write_text(f"#!/bin/sh\n{does}\n")
        (bin / name).chmod(0o755)
    return bin


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--time", "soon"), "--time: 'soon' is no time"),
        (("--time", 60), "there is no SLURM here"),
        (("--time", 1, "--grace", 60), "--grace: 60 s before its end"),
        (("--time", 60, "--gpus", 8, "--nodes", 3), "--nodes, --gpus: of 24 devices the run uses 16"),
        (("--time", 60, "--nodes", 3), "--nodes, --processes: of 3 devices the run uses 2"),
        (("--time", 60, "--gpus", 4, "--processes", 3), "can't be shared evenly by 3 processes"),
        (("--time", 60, "--nodes", 2, "--local"), "--nodes: --local is this machine alone"),
        (("--time", 60, "--partition", "gpu", "--local"), "--local: SLURM is not asked"),
        (("--time", 60, "--slurm", "exclusive"), "--slurm: 'exclusive' is not KEY=VALUE"),
        (("--time", 60, "--slurm", "qos=a\nrm -r x"), "is not KEY=VALUE"),
        (("--time", 60, "--name", "a\nb"), "a character that is no text"),
        (("--time", 60, "--out-dir", "a%j"), "holds a %, which SLURM reads"),
        (("--time", 60, "--out-dir", "tiny.yaml/runs"), "can't write the run directory"),
    ],
)
def test_what_can_not_be_launched(
    tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch, asked: tuple[object, ...], said: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    write_file(tmp_path)
    before = tree(tmp_path)
    code, _, err = vpd("launch", "tiny.yaml", *asked)
    assert code == 2 and said in one_line(err)
    assert tree(tmp_path) == before


def test_a_bad_run_file_is_refused_before_it_waits_in_a_queue(tmp_path: Path, vpd: Vpd) -> None:
    write_file(tmp_path, pd__steps=-1)
    code, _, err = vpd("launch", "tiny.yaml", "--time", 60, "--dry-run")
    assert code == 2 and "pd.steps" in one_line(err)


def test_a_missing_library_names_the_extra(vpd: Vpd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpd.submission.find_spec", lambda _: None)
    write_file(tmp_path)
    code, _, err = vpd("launch", "tiny.yaml", "--time", 60)
    assert code == 2 and "pip install 'vpd-jax[slurm]'" in one_line(err)


def test_a_finished_run_is_not_launched(finished: Path, vpd: Vpd) -> None:
    before = tree(finished)
    code, _, err = vpd("launch", finished, "--time", 60, "--local")
    assert code == 2 and "is finished already" in one_line(err)
    assert tree(finished) == before


@pytest.mark.slow
def test_a_preempted_run_ends_as_one_that_was_not(tmp_path: Path, vpd: Vpd, finished: Path) -> None:
    write_file(tmp_path)
    code, out, _ = vpd("launch", "tiny.yaml", "--time", 60, "--local")
    assert code == 0 and out.splitlines()[-1] == str(tmp_path / RUN)
    controller = psutil.Process(int(out.splitlines()[0].split()[-1]))
    while not saved_steps(RUN):
        assert controller.is_running()
        time.sleep(0.02)
    (task,) = controller.children()
    task.send_signal(signal.SIGUSR2)
    controller.wait(300)
    logs = {path.suffix: path.read_text() for path in (tmp_path / "runs" / "tiny.launch").glob("*_0_log.*")}
    assert "stopped by a signal" in logs[".err"] and "from step" in logs[".err"], logs
    assert "Requeued job" in logs[".out"] and logs[".out"].count("Job completed successfully") == 1
    assert_same_run(tmp_path / RUN, finished)
