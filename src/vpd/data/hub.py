"""Data sets of the hub, for which the extra `hub` is needed."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

from vpd.errors import VpdError


def refuse_no_hub(name: str) -> None:
    """Find out before long work starts whether a data set of the hub could be asked for.

    Raises:
        VpdError: where the extra is not installed.
    """
    if find_spec("datasets") is None:
        raise VpdError(
            f"{name}: there is no such file or folder, and for a data set of the hub the extra hub is needed: "
            "pip install 'vpd-jax[hub]'"
        )


def hub_documents(
    name: str, split: str, column: str, data_files: tuple[str, ...], revision: str | None, streaming: bool
) -> Iterator[object]:
    """One column of a split, row by row.

    Raises:
        VpdError: where the hub has no such data set, split or column, or does not answer.
    """
    refuse_no_hub(name)
    load = import_module("datasets").load_dataset
    try:
        rows = load(name, data_files=list(data_files) or None, revision=revision, split=split, streaming=streaming)
        for row in rows:
            if column not in row:
                raise VpdError(f"{name}: there is no column {column}; its columns are {', '.join(row)}")
            yield row[column]
    except (OSError, ValueError) as error:  # what its client raises for a name, split or answer that is not there
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VpdError(f"{name}: the hub gave no split {split} ({said}); give local files instead") from None
