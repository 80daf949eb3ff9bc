"""From a traced target to what a run file says of it, and back: is this the network that a run is of?"""

import glob
import hashlib
import json
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase

from vpd.config.block import refusal
from vpd.config.targets import PythonTarget
from vpd.config.targets import Target as TargetBlock
from vpd.config.values import is_block
from vpd.errors import RunError
from vpd.run_directory import RunDirectory
from vpd.targets.traced import TracedTarget

_PARTS = {"leaves": "paths or shapes of parameters", "weights": "weights", "sites": "sites"}


def run_file_content(content: Mapping[str, object], target: TracedTarget) -> dict[str, object]:
    """A run file for a traced target: its ``target`` block and its sites written in.

    Args:
        content: a run file, without these blocks or with those of the same target.
        target: the network.

    Raises:
        ConfigError: a file that describes another target, other sites or data.
    """
    leading = target.leading(target.batch)
    if len(leading) not in (1, 2):
        raise refusal(
            "target",
            f"its positions have shape {list(leading)}, and they are [batch] or [batch, sequence]",
            "choose other sites, or another shape of batch",
        )
    block = {
        "kind": "traced",
        "name": target.name,
        "fingerprint": pinned_fingerprint(target.fingerprint()),
        "sequence": len(leading) == 2,
    }
    given = content.get("target")
    if given is not None and not (is_block(given) and given.get("kind") == "traced"):
        raise refusal("target", "the network is the traced one that was given", "remove the block")
    pd = content.get("pd")
    if not is_block(pd):
        return {**content, "target": block}
    sites = site_patterns(target)
    key = "decomposition_targets"
    if pd.get(key) is not None and not _same_sites(pd[key], sites):
        raise refusal(f"pd.{key}", "the sites of a traced target are those it was traced with", "remove the key")
    return {**content, "target": block, "pd": {**pd, key: sites}}


def _same_sites(given: object, sites: list[dict[str, object]]) -> bool:
    entries = list(given) if isinstance(given, list | tuple) else []
    return entries == sites


def site_patterns(target: TracedTarget) -> list[dict[str, object]]:
    """One pattern for each site, and for each stack where one says exactly it."""
    names, found = list(target.matrices()), dict[str, int]()
    for pattern, C in target.subcomponents:
        own = [name for name in names if name == pattern] or _members(pattern, names)
        star = "*".join(map(glob.escape, pattern.split("*")))
        exact = [name for name in names if fnmatchcase(name, star)] == own
        found |= {star: C} if exact else {glob.escape(name): C for name in own}
    return [{"module_pattern": pattern, "C": C} for pattern, C in found.items()]


def _members(pattern: str, names: list[str]) -> list[str]:
    """The matrices of a stack ``prefix.*.matrix``."""
    head, _, tail = pattern.partition("*")
    return [n for n in names if n.startswith(head) and n.endswith(tail) and n[len(head) : -len(tail)].isdecimal()]


def pinned_fingerprint(parts: Mapping[str, str]) -> str:
    """One hash of a network and its sites; its program is compared apart, since its text depends on JAX's version."""
    return hashlib.sha256(json.dumps([parts[name] for name in _PARTS]).encode()).hexdigest()[:24]


def refuse_missing_network(block: PythonTarget) -> RunError:
    """The refusal of a run file, or a run, whose network lives in a Python program."""
    return RunError(
        f"the target is {block.name}, a function that was traced in Python, and no file holds it; "
        "trace it there and give it: vpd.open_run(path, target=...) or vpd.decompose(file, target=..., data=...)"
    )


def refuse_another_network(directory: RunDirectory, block: TargetBlock, target: TracedTarget | None) -> TracedTarget:
    """The traced target, once it is known to be the one that a run pins.

    Raises:
        RunError: another one, none, or a run of another kind of target.
    """
    if not isinstance(block, PythonTarget):
        raise RunError(f"{directory.path} holds its own target; open it without target=")
    if target is None:
        raise refuse_missing_network(block)
    pinned, found = directory.read_facts().get("fingerprint"), target.fingerprint()
    if not is_block(pinned):
        raise RunError(f"{directory.facts} has no fingerprint of its target; restore it from a copy")
    for part, what in _PARTS.items():
        if pinned.get(part) != found[part]:
            raise RunError(f"{directory.path} is a run of another network: its {what} differ; trace the one it is of")
    if pinned.get("program") != found["program"]:
        if pinned.get("jax") == found["jax"]:
            raise RunError(
                f"{directory.path} is a run of another network: the same weights in another program; trace the "
                "function, with an example of the shape, that it is of"
            )
        warnings.warn(
            f"{directory.path} was traced by JAX {pinned.get('jax')}, this is {found['jax']}: whether the program is "
            "the same can't be compared",
            stacklevel=3,
        )
    return target
