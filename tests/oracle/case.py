"""Reads recorded cases and holds results against them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

CASES = Path(os.environ.get("VPD_ORACLE_DIR", Path(__file__).parent / "cases"))


@dataclass(frozen=True)
class Case:
    """One recorded case."""

    name: str
    kind: str
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    inputs: tuple[str, ...]
    expected: tuple[str, ...]
    tolerance: dict[str, Any]

    def __getitem__(self, name: str) -> jnp.ndarray:
        """An input as a device array."""
        assert name in self.inputs, f"{name} is not an input of {self.name}"
        return jnp.asarray(self.arrays[name])

    def tree(self, prefix: str) -> dict[str, jnp.ndarray]:
        """Inputs below a prefix: ``{rest of the name: array}``."""
        return {n.removeprefix(prefix): self[n] for n in self.inputs if n.startswith(prefix)}

    def check(self, got: Mapping[str, Any]) -> None:
        """Every expected array is present and within the case's own tolerance; NaN means undefined here."""
        missing = sorted(set(self.expected) - set(got))
        assert not missing, f"{self.name}: nothing computed for {missing}"
        wrong: list[str] = []
        for name in self.expected:
            want, have = self.arrays[name], np.asarray(got[name])
            assert want.shape == have.shape, f"{self.name}: {name} has shape {have.shape}, expected {want.shape}"
            rtol, atol = self._tolerance(name)
            want64, have64 = want.astype(np.float64), have.astype(np.float64)
            excess = np.abs(have64 - want64) - (atol + rtol * np.abs(want64))
            bad = ~np.isnan(want64) & ~(excess <= 0)
            if bad.any():
                worst = np.nanmax(np.where(bad, np.where(np.isnan(excess), np.inf, excess), -np.inf))
                wrong.append(
                    f"{name}: {bad.sum()} of {bad.size} elements, worst by {worst:.3g} (rtol {rtol}, atol {atol})"
                )
        assert not wrong, f"{self.name}: " + "; ".join(wrong)

    def _tolerance(self, name: str) -> tuple[float, float]:
        pair = self.tolerance
        for prefix, override in self.tolerance.get("overrides", {}).items():
            if name.startswith(prefix):
                pair = override
        return pair["rtol"], pair["atol"]


def load(path: Path) -> Case:
    """Read one ``.json`` and the ``.npz`` beside it."""
    record = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    assert set(values) == set(record["inputs"]) | set(record["expected"]), f"{path} lists other arrays than it holds"
    return Case(
        record["case"],
        record["kind"],
        record["config"],
        values,
        tuple(record["inputs"]),
        tuple(record["expected"]),
        record["tolerance"],
    )


def paths() -> list[Path]:
    """Every case of the directory under test."""
    found = sorted(CASES.glob("*.json"))
    assert found, f"no conformance cases in {CASES}"
    return found
