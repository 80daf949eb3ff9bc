"""What opens an account reaches no file of a run and no line of it."""

from pathlib import Path

import pytest
from tiny_run import Vpd, write_file

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz01234567",
    "HTTPS_PROXY": "http://someone:proxy-word@localhost:9",
}


def test_secrets_of_the_environment_reach_no_file_and_no_line(
    tmp_path: Path, vpd: Vpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run that fails, and leaves a dump of what it met."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    file = write_file(tmp_path, eval=None, pd__components_optimizer={"lr_schedule": {"start_val": 1e18}})
    code, out, err = vpd("train", file, "--out-dir", tmp_path / "runs")
    assert code == 1 and list((tmp_path / "runs" / "tiny" / "nonfinite").iterdir())
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in SECRETS.values():
        assert secret.encode() not in written and secret not in out + err
    assert b"proxy-word" not in written


def test_a_secret_in_a_run_file_stops_it_before_anything_is_written(tmp_path: Path, vpd: Vpd) -> None:
    file = write_file(tmp_path, run_name="https://someone:a-word@host.org/name")
    code, out, err = vpd("train", file, "--out-dir", tmp_path / "runs")
    assert code == 2 and "run_name: holds a password or a token" in err and "a-word" not in out + err
    assert not (tmp_path / "runs").exists()
