"""Cases that together show every legal pair of values of two different axes."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

Value = tuple[str, object]
Pair = tuple[Value, Value]
Axes = Mapping[str, Sequence[object]]
Case = dict[str, object]
Legal = Callable[[Value, Value], bool]

ATTEMPTS = 12


def all_pairs(axes: Axes) -> list[Pair]:
    """Pairs of values of two different axes, legal or not."""
    return [((a, x), (b, y)) for a, b in combinations(axes, 2) for x in axes[a] for y in axes[b]]


def pairs_of(axes: Axes, case: Case) -> list[Pair]:
    """The pairs that a case shows."""
    return [((a, case[a]), (b, case[b])) for a, b in combinations(axes, 2)]


def completed(
    axes: Axes, start: Case, legal: Legal, order: Sequence[str], gain: Callable[[Value, Case], int]
) -> Case | None:
    """A legal case that contains ``start``, axes filled in an order with the value of the largest gain; else None."""
    rest = [axis for axis in order if axis not in start]
    if not rest:
        return start
    axis = rest[0]
    fitting = [v for v in axes[axis] if all(legal((axis, v), other) for other in start.items())]
    for value in sorted(fitting, key=lambda v: -gain((axis, v), start)):
        found = completed(axes, start | {axis: value}, legal, order, gain)
        if found is not None:
            return found
    return None


def reachable(axes: Axes, legal: Legal) -> Iterator[Pair]:
    """The pairs that some legal case shows."""
    for pair in all_pairs(axes):
        if legal(*pair) and completed(axes, dict(pair), legal, list(axes), lambda *_: 0) is not None:
            yield pair


def covering(axes: Axes, legal: Legal) -> list[Case]:
    """Greedy: each case starts from the first pair that is missing, and is the best of a few orders of filling it."""
    missing = dict.fromkeys(reachable(axes, legal))
    position = {axis: i for i, axis in enumerate(axes)}
    rng = random.Random(0)
    cases: list[Case] = []

    def gain(value: Value, case: Case) -> int:
        met = (sorted((value, other), key=lambda v: position[v[0]]) for other in case.items())
        return sum((first, second) in missing for first, second in met)

    while missing:
        start, tried = dict(next(iter(missing))), []
        for _ in range(ATTEMPTS):
            order = rng.sample(list(axes), len(axes))
            found = completed(axes, start, legal, order, gain)
            assert found is not None
            tried.append({axis: found[axis] for axis in axes})
        best = max(tried, key=lambda case: sum(pair in missing for pair in pairs_of(axes, case)))
        cases.append(best)
        for pair in pairs_of(axes, best):
            missing.pop(pair, None)
    return cases


def showing_values(axes: Axes, cases: Sequence[Case]) -> list[Case]:
    """A few of the cases that together show every value of every axis that some case shows."""
    missing = dict.fromkeys((axis, case[axis]) for case in cases for axis in axes)
    chosen: list[Case] = []
    while missing:
        chosen.append(max(cases, key=lambda case: sum(value in missing for value in case.items())))
        for value in chosen[-1].items():
            missing.pop(value, None)
    return chosen
