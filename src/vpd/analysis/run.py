"""``open_run``: a run directory as a network that can be looked into."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar  # Any: what generation takes beside

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vpd.analysis.artefacts import Origin
from vpd.analysis.names import FlatAxis, refuse_other_sites
from vpd.config import read_run_file
from vpd.config.run import RunConfig
from vpd.config.targets import TokenData
from vpd.data.build import Sampler
from vpd.decomposition import (
    Activation,
    Components,
    ComponentSet,
    Site,
    SiteMask,
    dense,
    members_in_order,
    site_inner,
    unstacked,
)
from vpd.errors import RunError
from vpd.experiment import Experiment, build, reopened_target, state_template
from vpd.progress import say
from vpd.run_directory import RunDirectory
from vpd.targets import Target, clean_forward, masked_forward
from vpd.targets.traced import TracedTarget
from vpd.training.checkpoint import Checkpoints
from vpd.training.state import Decomposition
from vpd.training.step import Problem, lower_importances

if TYPE_CHECKING:
    from vpd.analysis.editing.edited import Edited
    from vpd.analysis.editing.edits import Edit
    from vpd.analysis.generation import Continuation
    from vpd.analysis.table import ComponentTable
    from vpd.data.tokenizer import TextTokenizer

Tree = TypeVar("Tree")
Masks = Mapping[str, Float[Array, "..."] | SiteMask]


@dataclass(frozen=True)
class Run:
    """An opened run: target, V/U and CI function of one checkpoint. Neither optimizers nor adversaries are loaded.

    Attributes:
        directory: the run directory.
        experiment: target, sites and settings.
        decomposition: V, U and the CI function.
        step: updates made when the checkpoint was saved.
        status: of the run: ``running``, ``stopped`` or ``finished``.
    """

    directory: RunDirectory
    experiment: Experiment
    decomposition: Decomposition
    step: int
    status: str

    @property
    def path(self) -> Path:
        """The run directory's path."""
        return self.directory.path

    @property
    def config(self) -> RunConfig:
        """The pinned run file."""
        return self.experiment.config

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the decomposed matrices in numeric layer order."""
        return tuple(name for _, _, name in members_in_order(self.experiment.problem.sites))

    @property
    def axis(self) -> FlatAxis:
        """All subcomponents in a row."""
        return FlatAxis({name: site.C for site, _, name in members_in_order(self.experiment.problem.sites)})

    @property
    def origin(self) -> Origin:
        """What is made from this run, as artefacts name it."""
        return Origin(self.path.resolve().name, self.step, self.axis.sizes)

    @cached_property
    def tokenizer(self) -> "TextTokenizer":
        """What makes text into the tokens of a language model.

        Raises:
            RunError: a run whose inputs are no text, or whose tokenizer is not at hand.
        """
        if not isinstance(self.config.data, TokenData):
            raise RunError(f"{self.path} decomposes a network that reads no text, so it has no tokenizer")
        from vpd.data.tokenizer import load_tokenizer  # what toys do without

        return load_tokenizer(self.config.data.tokenizer_name)

    def components(self, site: str) -> Components:
        """V ``[d_in, C]`` and U ``[C, d_out]`` of a site.

        Raises:
            RunError: a site that is not decomposed.
        """
        refuse_other_sites([site], self.axis.sizes)
        return self.decomposition.components[site]

    def table(self, threshold: float = 0.1) -> "ComponentTable":
        """All subcomponents with density, mean CI and norm; from a harvest of this checkpoint if there is one.

        Args:
            threshold: a subcomponent fires above it, where a short pass is made in place of a harvest.
        """
        from vpd.analysis.table import component_table  # it reads what is harvested from a run

        return component_table(self, threshold)

    def generate(self, prompt: str | Sequence[int], masking: str = "target", **how: Any) -> "Continuation":
        """Continue a prompt under a masking; see :func:`vpd.analysis.generation.generate` for the arguments."""
        from vpd.analysis.generation import generate  # as above

        return generate(self, prompt, masking, **how)

    def batch(self, index: int) -> Shaped[Array, "..."]:
        """A batch of the run's own evaluation stream; of its training stream where the run evaluates nothing."""
        draw = self.experiment.eval_batch or self.experiment.train_batch
        return draw(jnp.asarray(self.config.pd.seed, jnp.uint32), jnp.asarray(index, jnp.int32))

    def output(self, batch: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """The clean output of the target."""
        return self._clean(self.experiment.target, batch)

    def causal_importances(self, batch: Shaped[Array, "..."]) -> dict[str, Float[Array, "..."]]:
        """Lower causal importances of every site, ``{site: [*leading, C]}``."""
        found = self._importances(self.experiment.target, self.decomposition, batch)
        single = unstacked(found, self.experiment.problem.sites)
        return {site: jnp.asarray(x) for site, x in single.items()}

    def stacked_importances(self, batch: Shaped[Array, "..."]) -> dict[str, Float[Array, "..."]]:
        """As :meth:`causal_importances`, of a stack of matrices together: ``{stack: [depth, *leading, C]}``."""
        return self._importances(self.experiment.target, self.decomposition, batch)

    def component_activations(self, batch: Shaped[Array, "..."]) -> dict[str, Float[Array, "..."]]:
        """How much of each subcomponent is in the clean input of its site, ``‖U_c‖ · x·V_c``: {site: [*leading, C]}."""
        found = self._activations(self.experiment.target, self.decomposition.components, batch)
        single = unstacked(found, self.experiment.problem.sites)
        return {site: jnp.asarray(x) for site, x in single.items()}

    def edited(self, edits: "Sequence[Edit]") -> "Edited":
        """The network with some subcomponents ablated, boosted or redirected: see :class:`vpd.Edit`.

        Raises:
            RunError: unknown subcomponents, or edits that make no sense.
        """
        from vpd.analysis.editing.edited import edited  # which reads runs

        return edited(self, edits)

    def masked_output(self, batch: Shaped[Array, "..."], masks: Masks) -> Shaped[Array, "..."]:
        """The target's output with masked sites.

        Args:
            batch: input of the target.
            masks: ``{site: mask}`` where a mask is ``[*leading, C]`` (the delta is then off), or a ``SiteMask`` with a
                delta mask and routing. Sites that are not named run frozen.

        Raises:
            RunError: a site that is not decomposed, or a mask that doesn't fit its subcomponents or the batch.
        """
        leading = self.leading(batch)
        ready: dict[str, SiteMask] = {}
        for site, mask in masks.items():
            site_mask = mask if isinstance(mask, SiteMask) else SiteMask(jnp.asarray(mask))
            C = self.components(site).V.shape[1]
            if site_mask.component.shape[-1:] != (C,):
                raise RunError(
                    f"the mask of {site!r} has shape {site_mask.component.shape}; its last axis must be C = {C}"
                )
            for name, part in _parts(site_mask):
                if not _spreads(part, leading):
                    raise RunError(f"the {name} of {site!r} is for positions of shape {part}; the batch has {leading}")
            ready[site] = site_mask
        return self._masked(self.experiment.target, self.decomposition, batch, ready)

    def leading(self, batch: Shaped[Array, "..."]) -> tuple[int, ...]:
        """Shape of the positions of a batch: ``(batch,)`` or ``(batch, sequence)``."""
        ci = jax.eval_shape(self._importances, self.experiment.target, self.decomposition, batch)
        first = self.experiment.problem.sites[0]
        return ci[first.name].shape[len(first.stack) : -1]

    @cached_property
    def _clean(self):
        return jax.jit(lambda target, batch: clean_forward(target, batch)[0])

    @cached_property
    def _importances(self):
        return jax.jit(partial(lower_importances, self.experiment.problem))

    @cached_property
    def _activations(self):
        return jax.jit(partial(component_activations, self.experiment.problem))

    @cached_property
    def _masked(self):
        def masked(target: Target, decomposition: Decomposition, batch: Array, masks: dict[str, SiteMask]) -> Array:
            components, masks = in_type_of(target, (decomposition.components, masks))
            return masked_forward(target, components, batch, masks)

        return jax.jit(masked)


def component_activations(
    problem: Problem, target: Target, components: ComponentSet, batch: Shaped[Array, "..."]
) -> dict[str, Float[Array, "..."]]:
    """``‖U_c‖ · x·V_c`` on the clean inputs of the sites, of a stack with its first axis (method.md §11)."""
    _, inputs = clean_forward(target, batch, problem.sites)
    components = in_type_of(target, components)
    return {site.name: normed_activations(site, components[site.name], inputs[site.name]) for site in problem.sites}


def normed_activations(site: Site, pieces: Components, x: Activation) -> Float[Array, "..."]:
    """``‖U_c‖ · x·V_c`` of one site, or of each matrix of a stack."""

    def one(pieces: Components, x: Activation) -> Float[Array, "*leading C"]:
        inner = site_inner(x, pieces, site.kind)
        return inner * jnp.linalg.norm(pieces.U, axis=-1).astype(inner.dtype)

    return one(pieces, x) if site.span is None else jax.vmap(one)(pieces, dense(x))


def in_type_of(target: Target, tree: Tree) -> Tree:
    """Floating-point leaves in the type of the frozen weights."""
    dtype = jax.tree.leaves(target)[0].dtype
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _parts(mask: SiteMask) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What a mask is made of, with the shape of its positions."""
    yield "mask", mask.component.shape[:-1]
    if mask.delta is not None:
        yield "delta mask", mask.delta.shape
    if mask.routing is not None:
        yield "routing", mask.routing.shape


def _spreads(shape: tuple[int, ...], leading: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts to the positions of a batch."""
    try:
        return np.broadcast_shapes(shape, leading) == leading
    except ValueError:
        return False


def open_run(
    path: str | Path, step: int | None = None, *, target: TracedTarget | None = None, data: Sampler | None = None
) -> Run:
    """Open a run directory for reading.

    A run opens at its newest good checkpoint, also while it is training; damaged ones are named on standard error.

    Args:
        path: the folder that ``vpd train`` printed.
        step: of the checkpoint; None takes the newest good one.
        target: the traced network, where the run is of one.
        data: ``data(key, n)``, n examples of a traced network's input, where it is to be evaluated.

    Raises:
        RunError: no run directory, no finished or no good checkpoint, not the one asked for, or another network.
        ConfigError: a pinned run file that can't be read.
    """
    directory = RunDirectory(Path(path))
    facts = directory.read_facts()
    config = read_run_file(directory.config).config
    network = reopened_target(directory, config, target)
    if not directory.checkpoints.is_dir():
        raise RunError(_nothing_saved(directory))
    checkpoints = Checkpoints(directory.checkpoints, writable=False)
    steps = checkpoints.steps()
    if not steps:
        raise RunError(_nothing_saved(directory))
    if step is not None and step not in steps:
        raise RunError(f"{path} has no finished checkpoint at step {step}; there are {', '.join(map(str, steps))}")
    experiment = build(config, network, data=data)
    template = state_template(experiment).decomposition
    if step is not None:
        decomposition = checkpoints.load_decomposition(step, template)
    else:
        found = checkpoints.newest(lambda step: checkpoints.load_verified(step, template))
        assert found is not None
        for damaged, reason in found.skipped.items():
            say(f"checkpoint {damaged} of {path} is damaged ({reason}); step {found.step} is opened")
        decomposition, step = found.value, found.step
    return Run(directory, experiment, decomposition, step, str(facts.get("status")))


def _nothing_saved(directory: RunDirectory) -> str:
    return (
        f"{directory.path} has no finished checkpoint yet; "
        f"wait until it has saved one, or go on with `vpd train {directory.path}`"
    )
