"""The smallest change to a run file under which a run fits its devices."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from jax.sharding import AbstractMesh

from vpd.config.run import RunConfig
from vpd.errors import ConfigError
from vpd.experiment import Experiment
from vpd.objective import FreshPGD, Persistent, ReconTerm
from vpd.placement import AXES, Placement
from vpd.planning.abstract import abstract_experiment
from vpd.planning.memory import Kept, argument_bytes, kept_for_backward, temporaries_from_shapes
from vpd.training.placed import mesh_sizes

# More devices are looked at up to so many times as many.
TIMES = 64


@dataclass(frozen=True)
class Change:
    """Values in place of the run file's.

    Attributes:
        placement: ``runtime.placement``; the mesh that goes with another one is that of a run file without a mesh.
        remat: ``runtime.remat``.
        devices: how many.
        batch_size: ``pd.batch_size``.
    """

    placement: Literal["ddp", "zero", "fsdp"] | None = None
    remat: Literal["block"] | None = None
    devices: int | None = None
    batch_size: int | None = None

    def text(self, config: RunConfig) -> str:
        """What to write where."""
        parts = [f"runtime.placement: {self.placement}"] if self.placement else []
        parts += ["without runtime.mesh"] if self.placement and config.runtime.mesh else []
        parts += [f"runtime.remat: {self.remat}"] if self.remat else []
        parts += [f"{self.devices} devices"] if self.devices else []
        parts += [f"pd.batch_size: {self.batch_size}"] if self.batch_size else []
        return ", ".join(parts)

    def applied(self, config: RunConfig) -> RunConfig:
        """The run file with it."""
        runtime: dict[str, object] = {"placement": self.placement, "mesh": None} if self.placement else {}
        runtime |= {"remat": self.remat} if self.remat else {}
        pd: dict[str, object] = {"batch_size": self.batch_size} if self.batch_size else {}
        changed = {
            "runtime": config.runtime.model_copy(update=runtime),
            "pd": config.pd.model_copy(update=pd),
        }
        return config.model_copy(update=changed)


@dataclass(frozen=True)
class Tried:
    """A change that was looked at.

    Attributes:
        change: which.
        text: in words.
        arguments: bytes on one device.
        temporaries: made there, from shapes.
        fits: whether both together are no more than the memory.
    """

    change: Change
    text: str
    arguments: int
    temporaries: int
    fits: bool


def smallest_change(
    experiment: Experiment, devices: int, memory: int, watch: Callable[[str], None]
) -> tuple[list[Tried], Change | None]:
    """Look at changes one after the other until exact arguments and temporaries from shapes fit.

    Args:
        experiment: abstract, of the run file as it is.
        devices: how many it was planned for.
        memory: bytes on one device.
        watch: told what is looked at.

    Returns:
        What was tried, and the change that fits; None where none of them does.
    """
    tried: list[Tried] = []
    known: dict[bool, Kept] = {}
    for change in changes(experiment, devices):
        config = change.applied(experiment.config)
        placement = abstract_placement(config, change.devices or devices)
        if placement is None:
            continue
        watch(f"trying {change.text(experiment.config)}")
        other = replace(abstract_experiment(config, experiment.target), placement=placement)
        # What forwards keep depends on what is recomputed alone.
        again = other.problem.remat_layers
        known[again] = known.get(again) or kept_for_backward(other)
        arguments, made = sum(argument_bytes(other).values()), temporaries_from_shapes(other, known[again]).bytes
        fits = arguments + made <= memory
        tried.append(Tried(change, change.text(experiment.config), arguments, made, fits))
        if fits:
            return tried, change
    return tried, None


def abstract_placement(config: RunConfig, devices: int) -> Placement | None:
    """Where a run would live on so many devices that need not be there; None where it can't use them all."""
    try:
        sizes = mesh_sizes(config.runtime, config.pd.batch_size, devices)
    except ConfigError:
        return None
    if prod(sizes) != devices:
        return None
    mesh = AbstractMesh(sizes, AXES)
    return Placement(mesh, config.runtime.placement)  # pyright: ignore[reportArgumentType]  # shardings ask for sizes alone


def changes(experiment: Experiment, devices: int) -> Iterator[Change]:
    """Changes from the smallest on: placement, rematerialisation, both, more devices, a smaller batch."""
    config = experiment.config
    order = ("ddp", "zero", "fsdp")
    split = order[order.index(config.runtime.placement) + 1 :] if devices > 1 else ()
    block = config.runtime.remat == "none" and not config.runtime.remat_recon_forwards
    for placement in split:
        yield Change(placement)
    if block:
        yield Change(remat="block")
        for placement in split:
            yield Change(placement, "block")
    remat: Literal["block"] | None = "block" if block else None
    last: Literal["fsdp"] | None = "fsdp" if config.runtime.placement != "fsdp" else None
    times = [2**i for i in range(1, TIMES.bit_length())]
    for n in times:
        yield Change(last, remat, n * devices)
    sources = [term.source for term in experiment.problem.terms if isinstance(term, ReconTerm)]
    tiled = [source.n_sources or 1 for source in sources if isinstance(source, FreshPGD | Persistent)]
    for n in times:
        batch, left = divmod(config.pd.batch_size, n)
        if not left and batch % devices == 0 and all(batch % number == 0 for number in tiled):
            yield Change(last if devices > 1 else None, remat, None, batch)
