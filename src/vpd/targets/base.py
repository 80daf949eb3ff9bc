"""The seam: a target writes its forward pass once; every view of it is derived here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable  # Any: what jax.checkpoint takes beside

import jax
from jaxtyping import Array, Float, PyTree, Shaped

from vpd.decomposition import (
    Activation,
    Components,
    ComponentSet,
    Mask,
    Site,
    SiteKind,
    dense,
    masked_site,
    site_frozen,
)
from vpd.decomposition.site import with_bias
from vpd.placement import along_batch
from vpd.targets.divergence import made_once
from vpd.targets.layers import Layers, Resume, Run

Batch = Shaped[Array, "..."]
Matrices = Mapping[str, tuple[int, int, SiteKind]]
Carry = TypeVar("Carry")
Body = Callable[["Seam", Carry, PyTree], tuple[Carry, PyTree]]
Part = Callable[["Seam", Shaped[Array, "..."], PyTree], Shaped[Array, "..."]]


@runtime_checkable
class Seam(Protocol):
    """The one call through which a target sends each of its decomposable matrices, and its layers."""

    def __call__(
        self,
        name: str,
        x: Activation,
        weight: Float[Array, "d_in d_out"] | None,
        bias: Float[Array, " d_out"] | None = None,
        kind: SiteKind = "linear",
        factored: bool = False,
    ) -> Activation:
        """Output ``[*leading, d_out]`` of the site ``name`` at input ``x``.

        Args:
            name: path of the matrix; within layers what follows the layer's own path.
            x: ``[*leading, d_in]``, or ``[*leading]`` of row indices.
            weight: ``[d_in, d_out]``, transposed here if it is stored the other way; None for an identity.
            bias: ``[d_out]``.
            kind: what the matrix does.
            factored: leave the output as a sum of products, for a stream that is only multiplied further.
        """
        ...

    def scan(self, layers: Layers, body: Body[Carry], carry: Carry, reverse: bool = False) -> tuple[Carry, PyTree]:
        """``carry, y = body(seam, carry, layer)`` over all layers, and the ``y`` stacked along a first axis.

        What is not a weight may ride along in the stacks of ``layers``. In reverse the last layer comes first; ``y``
        stays in the order of the layers.
        """
        ...

    def recomputed(self, body: Callable[["Seam", PyTree], PyTree], given: PyTree, **how: Any) -> PyTree:
        """``body(seam, given)``, computed again in the backward pass.

        Args:
            body: a part of the forward pass.
            given: the arrays it is a function of.
            how: what else ``jax.checkpoint`` takes.
        """
        ...

    def through(self, layers: Layers, parts: Sequence[Part], h: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """``h = part(seam, h, layer)`` for every part of every layer.

        A masked forward begins at the first part that holds a decomposed matrix: what lies before it was computed in
        the clean forward.
        """
        ...


@runtime_checkable
class Target(Protocol):
    """A frozen network that can be decomposed."""

    def forward(self, batch: Batch, seam: Seam) -> Activation:
        """The whole forward pass; each decomposable matrix is applied by ``seam``."""
        ...

    def divergence(self, clean: Activation, masked: Activation) -> Float[Array, "*leading"]:
        """How far the masked output is from the clean one, per position, in float32."""
        ...

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """Every decomposable matrix in numeric layer order: ``{name: (d_in, d_out, kind)}``."""
        ...


@dataclass(frozen=True)
class Use:
    """One use of a matrix in the forward pass: what :class:`Seam` is called with."""

    name: str
    x: Activation
    weight: Float[Array, "d_in d_out"] | None
    bias: Float[Array, " d_out"] | None
    kind: SiteKind
    factored: bool

    def frozen(self) -> Activation:
        """What the frozen matrix computes, bias included."""
        y = site_frozen(self.x, self.weight, self.kind, self.factored)
        return y if self.bias is None else with_bias(y, self.bias)

    def masked(self, pieces: Components, mask: Mask) -> Activation:
        """What the masked subcomponents compute, bias included."""
        return masked_site(self.x, self.weight, pieces, mask, self.bias, self.kind, self.factored)


Named = dict[str, Activation]


@dataclass
class Pass:
    """One way through a target: which sites are live, and what is written down. It is the seam.

    Attributes:
        live: masks by site, of a stack with its first axis; a single matrix of a stack may be named too.
        components: V and U of the live sites.
        wanted: the names that are written down; None takes every matrix, by its own path.
        remat: recompute each layer in the backward pass.
        resume: where to begin, from a clean forward.
        prefix: path of the layer that the pass is in.
        inputs: written down, ``{name: [*leading, d_in]}``.
        outputs: likewise, biases included.
        weights: as handed to the seam.
        used: the live names that were met.
        start: what a masked forward can begin at, found on the way.
    """

    live: Mapping[str, Mask] = field(default_factory=dict)
    components: ComponentSet | None = None
    wanted: frozenset[str] | None = frozenset()
    remat: bool = False
    resume: Resume | None = None
    prefix: str = ""
    inputs: Named = field(default_factory=dict)
    outputs: Named = field(default_factory=dict)
    weights: dict[str, Float[Array, "..."]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    start: list[Resume | None] = field(default_factory=list)

    def __call__(
        self,
        name: str,
        x: Activation,
        weight: Float[Array, "d_in d_out"] | None,
        bias: Float[Array, " d_out"] | None = None,
        kind: SiteKind = "linear",
        factored: bool = False,
    ) -> Activation:
        """As :class:`Seam` says."""
        name = self.prefix + name
        if kind == "linear" and (pre_identity(name) in self.live or self._wants(pre_identity(name))):
            x = self._run(Use(pre_identity(name), x, None, None, "identity", False))
        return self._run(Use(name, x, weight, bias, kind, factored))

    def _run(self, use: Use) -> Activation:
        if use.name in self.live:
            assert self.components is not None
            self.used.add(use.name)
            y = use.masked(self.components[use.name], self.live[use.name])
        else:
            y = use.frozen()
        if self._wants(use.name):
            self.inputs[use.name], self.outputs[use.name] = use.x, y
            if use.weight is not None:
                self.weights[use.name] = use.weight
        return y

    def _wants(self, name: str) -> bool:
        return self.wanted is None or name in self.wanted

    def _wanted_below(self, path: str) -> frozenset[str] | None:
        if self.wanted is None:
            return None
        return frozenset(name.removeprefix(path) for name in self.wanted if name.startswith(path))

    def scan(self, layers: Layers, body: Body[Carry], carry: Carry, reverse: bool = False) -> tuple[Carry, PyTree]:
        """As :class:`Seam` says."""
        ys: list[PyTree] = []
        for run in self._runs(layers)[:: -1 if reverse else 1]:
            carry, y = self._scan_run(run, body, carry, reverse)
            ys.append(y)
        return carry, jax.tree.map(lambda *parts: jax.numpy.concatenate(parts), *ys[:: -1 if reverse else 1])

    def recomputed(self, body: Callable[[Seam, PyTree], PyTree], given: PyTree, **how: Any) -> PyTree:
        """As :class:`Seam` says; what is written down leaves as an output, so it is kept."""

        def part(
            given: PyTree, live: dict[str, Mask], components: ComponentSet | None
        ) -> tuple[PyTree, Named, Named, dict[str, Array]]:
            seam = replace(self, live=live, components=components, inputs={}, outputs={}, weights={}, start=[])
            out = body(seam, given)
            return out, seam.inputs, seam.outputs, seam.weights

        again = partial(jax.checkpoint, **how)(part)
        out, inputs, outputs, weights = again(given, dict(self.live), self.components)
        self.inputs |= inputs
        self.outputs |= outputs
        self.weights |= weights
        return out

    def through(self, layers: Layers, parts: Sequence[Part], h: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """As :class:`Seam` says."""
        resume = self.resume if self.resume is not None and self.resume.prefix == layers.prefix else None
        for run in self._runs(layers):
            if resume is not None and run.first + run.depth <= resume.first:
                continue
            inside = resume is not None and run.first < resume.first
            assert not inside, f"a masked forward begins within {run.span}; cut the layers for the sites"
            if resume is not None and run.first <= resume.first:
                h = resume.h
            begin = resume.part if resume is not None and run.first == resume.first else 0
            if run.depth > 1:
                h = self._through_stack(run, parts, h)
                continue
            layer, seam = run.layer(0), self._at(run)
            if self.remat:
                h = seam.recomputed(partial(_in_turn, parts[begin:]), (h, layer))
                continue
            for i, part in enumerate(parts[begin:], start=begin):
                before, known = h, len(self.inputs)
                h = along_batch(part(seam, h, layer))
                self._note_start(known, Resume(before, layers.prefix, run.first, i))
        return h

    def _through_stack(self, run: Run, parts: Sequence[Part], h: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        def body(seam: Seam, h: Shaped[Array, "..."], layer: PyTree) -> tuple[Shaped[Array, "..."], None]:
            return _in_turn(parts, seam, (h, layer)), None

        known = len(self.inputs)
        after, _ = self._scan_run(run, body, h)
        self._note_start(known, Resume(h, run.prefix, run.first, 0))
        return after

    def _note_start(self, known: int, here: Resume) -> None:
        """The first part that wrote something down is where masked forwards begin, unless something came before it."""
        if len(self.inputs) > known and not self.start:
            self.start.append(here if known == 0 else None)

    def _at(self, run: Run) -> "Pass":
        """The same pass in a single layer, with the masks and subcomponents of its sites alone."""
        path = f"{run.prefix}.{run.first}."
        live = {name: mask for name, mask in self.live.items() if name.startswith(path)}
        pieces = {name: self.components[name] for name in live} if self.components is not None else {}
        return replace(self, prefix=path, live=live, components=ComponentSet(pieces))

    def _scan_run(self, run: Run, body: Body[Carry], carry: Carry, reverse: bool = False) -> tuple[Carry, PyTree]:
        """One run of layers: a single one in place, several in a scan that carries their sites' arrays along."""
        if run.depth == 1:
            carry, y = body(self._at(run), carry, run.layer(0))
            return carry, jax.tree.map(lambda leaf: leaf[None], y)
        path = f"{run.span}."
        live = {name.removeprefix(path): mask for name, mask in self.live.items() if name.startswith(path)}
        owned = {name: self.components[path + name] for name in live} if self.components is not None else {}
        own = self._wanted_below(path)

        used: set[str] = set()

        def layer(carry: Carry, given: tuple[PyTree, dict[str, Components], dict[str, Mask]]) -> tuple[Carry, PyTree]:
            weights, pieces, masks = given
            seam = Pass(masks, ComponentSet(pieces), own, used=used)
            carry, y = body(seam, carry, weights)
            return carry, (y, _dense(seam.inputs), _dense(seam.outputs))

        if self.remat:
            layer = jax.checkpoint(layer)
        carry, (y, inputs, outputs) = jax.lax.scan(
            layer, carry, (run.stack, owned, live), reverse=reverse, unroll=run.unroll
        )
        self._keep(run, inputs, outputs)
        self.used |= {path + name for name in used}
        return carry, y

    def _keep(self, run: Run, inputs: Named, outputs: Named) -> None:
        for kept, found in ((self.inputs, inputs), (self.outputs, outputs)):
            for name, value in found.items():
                if self.wanted is not None:
                    kept[f"{run.span}.{name}"] = value
                    continue
                for i in range(run.depth):
                    kept[f"{run.prefix}.{run.first + i}.{name}"] = dense(value)[i]

    def _runs(self, layers: Layers) -> list[Run]:
        """The layers in runs; one that is named by itself stands alone."""
        named = [*self.live, *(self.wanted or ())]
        return layers.split(lambda i: any(name.startswith(f"{layers.prefix}.{i}.") for name in named))


def _in_turn(parts: Sequence[Part], seam: Seam, given: tuple[Shaped[Array, "..."], PyTree]) -> Shaped[Array, "..."]:
    """The stream after every part of a layer."""
    h, layer = given
    for part in parts:
        h = along_batch(part(seam, h, layer))
    return h


def _dense(named: Named) -> Named:
    return {name: dense(x) for name, x in named.items()}


def pre_identity(name: str) -> str:
    """The site of the identity that can be inserted before a matrix."""
    return f"{name}.pre_identity"


def with_identities(matrices: Matrices) -> dict[str, tuple[int, int, SiteKind]]:
    """Every matrix that can be a site: those of the target, a linear one after the identity that can be inserted."""
    sites: dict[str, tuple[int, int, SiteKind]] = {}
    for name, (d_in, d_out, kind) in matrices.items():
        if kind == "linear":
            sites[pre_identity(name)] = (d_in, d_in, "identity")
        sites[name] = (d_in, d_out, kind)
    return sites


def _names(sites: Sequence[Site] | None) -> frozenset[str] | None:
    return None if sites is None else frozenset(site.name for site in sites)


class Recorded(NamedTuple):
    """A clean forward: its output, every site's input and output, and where masked forwards can begin."""

    output: Activation
    inputs: Named
    outputs: Named
    resume: Resume | None


def clean_forward(target: Target, batch: Batch, sites: Sequence[Site] | None = None) -> tuple[Array, Named]:
    """Clean output and the input of every site, ``{name: [*leading, d_in]}``, in one all-frozen forward.

    Args:
        target: the frozen network.
        batch: its input.
        sites: those whose inputs are wanted, stacks with a first axis; None takes every matrix by its own path.
    """
    found = recorded_forward(target, batch, sites)
    return dense(found.output), found.inputs


def recorded_forward(target: Target, batch: Batch, sites: Sequence[Site] | None = None) -> Recorded:
    """As :func:`clean_forward`, and every site's output, bias included, ``{name: [*leading, d_out]}``."""
    seam = Pass(wanted=_names(sites))
    output = target.forward(batch, seam)
    return Recorded(made_once(output), seam.inputs, seam.outputs, seam.start[0] if seam.start else None)


def masked_site_outputs(
    target: Target,
    components: ComponentSet,
    batch: Batch,
    masks: Mapping[str, Mask],
    resume: Resume | None = None,
    remat: bool = False,
) -> tuple[Activation, Named]:
    """Masked output and every live site's output, bias included, ``{name: [*leading, d_out]}``.

    Sites without a mask are not live: they run frozen, without decomposed arithmetic.

    Args:
        target: the frozen network.
        components: V and U.
        batch: input of the target.
        masks: of the live sites, of a stack with its first axis; a single matrix of a stack may be named by its path.
        resume: where to begin, from a clean forward of the same batch; None begins with the batch.
        remat: recompute each layer in the backward pass.
    """
    seam = Pass(masks, components, frozenset(masks), remat, resume)
    output = target.forward(batch, seam)
    missed = set(masks) - seam.used
    assert not missed, f"the forward pass never reached {sorted(missed)}"
    return output, seam.outputs


def masked_forward(
    target: Target, components: ComponentSet, batch: Batch, masks: Mapping[str, Mask]
) -> Shaped[Array, "..."]:
    """Output of the whole target with the sites in ``masks`` live and masked, all others frozen."""
    return dense(masked_site_outputs(target, components, batch, masks)[0])


class _Weights(Pass):
    """A pass for the weights alone: layers side by side, so that a stack is the very array that is stored."""

    def recomputed(self, body: Callable[[Seam, PyTree], PyTree], given: PyTree, **how: Any) -> PyTree:
        """In place: there is no backward pass, and weights are to stay the arrays that are stored."""
        return body(self, given)

    def _scan_run(self, run: Run, body: Body[Carry], carry: Carry, reverse: bool = False) -> tuple[Carry, PyTree]:
        if run.depth == 1:
            return super()._scan_run(run, body, carry)
        path = f"{run.span}."
        own = self._wanted_below(path)

        def layer(weights: PyTree) -> tuple[Carry, PyTree, dict[str, Array]]:
            seam = _Weights(wanted=own, inputs={}, outputs={}, weights={})
            after, y = body(seam, carry, weights)
            return after, y, seam.weights

        after, y, weights = jax.vmap(layer)(run.stack)
        for name, value in weights.items():
            if self.wanted is not None:
                self.weights[path + name] = value
            else:
                self.weights |= {f"{run.prefix}.{run.first + i}.{name}": value[i] for i in range(run.depth)}
        return jax.tree.map(lambda leaf: leaf[-1], after), y


def frozen_weights(target: Target, batch: Batch, sites: Sequence[Site] | None = None) -> dict[str, Float[Array, "..."]]:
    """The weight that each matrix hands to the seam, ``{name: [d_in, d_out]}``; under jit nothing else is computed.

    Args:
        target: the frozen network.
        batch: any input of it.
        sites: those whose weights are wanted, stacks with a first axis; None takes every matrix by its own path.
    """
    seam = _Weights(wanted=_names(sites))
    target.forward(batch, seam)
    return seam.weights


def dense_inputs(inputs: Mapping[str, Activation]) -> dict[str, Shaped[Array, "..."]]:
    """Site inputs as arrays."""
    return {name: dense(x) for name, x in inputs.items()}
