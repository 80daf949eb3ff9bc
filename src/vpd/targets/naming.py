"""Names of the sites of a traced program, from parameter paths."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from vpd.errors import TraceError
from vpd.targets.plan import Stack, Use


def name_stacks(stacks: Sequence[Stack], aliases: Mapping[str, str]) -> None:
    """Give each stack the directory that its parameters share: layer i of it is ``<directory>.i``.

    Stacks of one directory and depth are one; another depth gets a number of its own.
    """
    depths: dict[str, list[int]] = {}
    for stack in stacks:
        prefix = _directory(stack.leaves) or stack.kind
        known = depths.setdefault(prefix, [])
        if stack.depth not in known:
            known.append(stack.depth)
        k = known.index(stack.depth)
        stack.prefix = prefix if k == 0 else f"{prefix}#{k}"
    for stack in stacks:
        stack.prefix = aliases.get(stack.prefix, stack.prefix)


def name_uses(uses: Sequence[Use], aliases: Mapping[str, str]) -> None:
    """Give each use its name; several uses of one matrix are numbered in program order.

    Args:
        uses: in program order, their stacks named.
        aliases: other names, by name; of a stack ``{"layers.*.mlp/w": "layers.*.c_fc"}``.

    Raises:
        TraceError: an alias of nothing, or two sites of one name.
    """
    plain = [_plain_name(use) for use in uses]
    keys = [(use.stack.prefix if use.stack else "", name) for use, name in zip(uses, plain, strict=True)]
    total, seen = Counter(keys), Counter[tuple[str, str]]()
    for use, name, key in zip(uses, plain, keys, strict=True):
        use.name = f"{name}#{seen[key]}" if total[key] > 1 else name
        seen[key] += 1
    names = {pattern_of(use) for use in uses}
    prefixes = {use.stack.prefix for use in uses if use.stack is not None}
    for old, new in aliases.items():
        if old not in names and new not in prefixes:
            raise TraceError(f"aliases: there is no site {old!r}; {spelling(old, sorted(names | prefixes))}")
    for use in uses:
        use.name = _renamed(use, aliases)
    twice = [name for name, n in Counter(pattern_of(use) for use in uses).items() if n > 1]
    if twice:
        raise TraceError(f"aliases: two sites would be called {twice[0]!r}; give each one a name of its own")


def pattern_of(use: Use) -> str:
    """The name of a site, of a stack with ``*`` for the number of the layer."""
    return use.name if use.stack is None else f"{use.stack.prefix}.*.{use.name}"


def member(use: Use, i: int) -> str:
    """The name of one matrix of a stack."""
    assert use.stack is not None
    return f"{use.stack.prefix}.{i}.{use.name}"


def spelling(word: str, choices: Sequence[str]) -> str:
    """The way out for a name that is not there."""
    close = get_close_matches(word, choices, n=1, cutoff=0.5)
    shown = ", ".join(choices[:24]) + (f" and {len(choices) - 24} more" if len(choices) > 24 else "")
    return f"nearest spelling: {close[0]}" if close else f"there are {shown}"


def _plain_name(use: Use) -> str:
    directory, _, last = use.leaf.rpartition("/")
    if use.stack is not None:
        shared = _directory(use.stack.leaves)
        return use.leaf.removeprefix(f"{shared}/") if shared else use.leaf
    if use.layer is not None:
        return f"{directory}.{use.layer}.{last}" if directory else f"{last}.{use.layer}"
    return use.leaf


def _renamed(use: Use, aliases: Mapping[str, str]) -> str:
    new = aliases.get(pattern_of(use))
    if new is None or use.stack is None:
        return new or use.name
    head = f"{use.stack.prefix}.*."
    if not new.startswith(head) or len(new) == len(head):
        raise TraceError(
            f"aliases: {pattern_of(use)!r} is a stack, and {new!r} is no name for one; write {head}name "
            f"(the layers themselves are renamed by {use.stack.prefix!r})"
        )
    return new.removeprefix(head)


def _directory(leaves: Iterable[str]) -> str:
    """What the paths of parameters begin with, as far as all do."""
    parts = [leaf.split("/")[:-1] for leaf in leaves]
    shared: list[str] = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return "/".join(shared)
