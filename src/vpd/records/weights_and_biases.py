"""Weights & Biases: one W&B run for one run directory, however often that is gone on with."""

import secrets
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

from vpd.config.run import RunConfig
from vpd.records.naming import STEP, drawings, named_scalars
from vpd.records.sink import EvalRecord, TrainRecord
from vpd.run_directory import RunDirectory

FACT = "wandb_id"
FINISH_SECONDS = 25.0
_NEEDS_ACCOUNT = ("online", "shared", "run")


def wandb_id(directory: RunDirectory) -> str:
    """The id of the run directory's W&B run, which ``run.json`` keeps from the first time on."""
    known = directory.read_facts().get(FACT)
    if isinstance(known, str):
        return known
    made = secrets.token_hex(4)
    directory.update_facts(**{FACT: made})
    return made


class WeightsAndBiases:
    """Logs to W&B, online or offline as the user's ``WANDB_MODE`` or settings say.

    W&B's own files lie where it puts them (``WANDB_DIR``, or ``wandb`` in the working directory), not in the run
    directory. A record carries its step as a value of its own, so that steps that are computed again after a resume
    are not refused: they lie on what they were before.
    """

    def __init__(self, config: RunConfig, run_id: str, say: Callable[[str], None]) -> None:
        """Begin the W&B run, or go on with it.

        Args:
            config: with a ``wandb`` block.
            run_id: of the W&B run.
            say: told where the records are to be seen.

        Raises:
            PermissionError: no credentials, where they are needed.
        """
        assert config.wandb is not None
        self._wandb = import_module("wandb")
        _refuse_no_account(self._wandb)
        self._run = self._wandb.init(
            project=config.wandb.project,
            entity=config.wandb.entity,
            group=config.wandb.group,
            tags=list(config.wandb.tags),
            name=config.run_name or config.run_id,
            id=run_id,
            resume="allow",
            reinit="create_new",  # a W&B run of the program that called us is left alone
            config=config.model_dump(mode="json"),
            allow_val_change=True,
            save_code=False,
            settings=self._wandb.Settings(
                console="off", silent=True, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True
            ),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        if self._run.offline:
            say(f"W&B is offline; `wandb sync {Path(self._run.dir).parent}` sends this run's records later")
        elif self._run.url:
            say(f"W&B shows this run at {self._run.url}")

    def train(self, record: TrainRecord) -> None:
        """Scalars of a step."""
        self._log(record.step, named_scalars("train", record.values))

    def evaluation(self, record: EvalRecord) -> None:
        """Scalars of an evaluation."""
        self._log(record.step, named_scalars("eval", record.metrics))

    def figures(self, step: int, folder: Path) -> None:
        """Drawings of an evaluation."""
        self._log(step, {d.name: self._wandb.Image(str(d.path), caption=d.title) for d in drawings(folder)})

    def _log(self, step: int, values: Mapping[str, object]) -> None:
        self._run.log({STEP: step, **values})

    def close(self, failed: bool) -> None:
        """End the W&B run; what could not be sent stays on the disk for ``wandb sync``."""
        self._run.finish(exit_code=int(failed))


def _refuse_no_account(wandb: ModuleType) -> None:
    """Never wait at a prompt, which nobody would see beside a progress bar."""
    if wandb.setup().settings.mode in _NEEDS_ACCOUNT and not wandb.login(prompt=False):
        raise PermissionError("nobody is logged in; `wandb login` does that, WANDB_MODE=offline goes without")
