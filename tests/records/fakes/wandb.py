"""Stands in for the package wandb: keeps what it is told, and fails or dawdles where a test says so."""

import os
import time
from types import SimpleNamespace
from typing import Any  # it takes whatever it is given

FAILS_AT = ""
SECONDS = 0.0
LOGGED_IN = True
RUNS: list["Run"] = []


class Settings(SimpleNamespace):
    pass


class Image:
    def __init__(self, path: str, caption: str) -> None:
        assert path.endswith(".png")
        with open(path, "rb") as file:
            self.size = len(file.read())
        self.caption = caption


class Run:
    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.rows, self.axes, self.exit_code = given, [], [], None
        self.rows: list[dict[str, Any]]
        self.offline = os.environ.get("WANDB_MODE") == "offline"
        self.url = None if self.offline else f"https://wandb.example/{given['project']}/{given['id']}"
        self.dir = f"wandb/offline-run-{given['id']}/files"

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, row: dict[str, Any]) -> None:
        time.sleep(SECONDS)
        _fail("log" if len(self.rows) == 3 else "nowhere")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        _fail("close")
        self.exit_code = exit_code


def _fail(where: str) -> None:
    if where == FAILS_AT:
        raise RuntimeError(f"{where}: 401 for key {os.environ.get('WANDB_API_KEY')} at https://user:pass@host/x.")


def init(**given: Any) -> Run:
    _fail("init")
    RUNS.append(Run(given))
    return RUNS[-1]


def setup() -> SimpleNamespace:
    return SimpleNamespace(settings=SimpleNamespace(mode=os.environ.get("WANDB_MODE", "online")))


def login(prompt: bool) -> bool:
    assert not prompt
    return LOGGED_IN
