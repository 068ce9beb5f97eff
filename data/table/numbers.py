"""Numbers as inputs and as categories: scales, buckets and quantiles. N: rows, V: distinct values."""

from dataclasses import dataclass

import numpy as np

PIECEWISE = "piecewise"  # for MMoE: raw numbers with bin edges, and each number as a category too
KINDS = ("number", "bucket", "quantile")  # how a number becomes a category
QUANTILE_BINS = 32


def log(raw: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|), float64, nan if missing."""
    return np.sign(raw) * np.log1p(np.abs(raw))


def clamped_log(raw: np.ndarray) -> np.ndarray:
    """log(1 + max(x, 0)), 0 if missing, as in DLRM's paper and BARS: float32."""
    return np.log1p(np.maximum(np.nan_to_num(raw), 0).astype(np.float32))


def bucket(raw: np.ndarray) -> np.ndarray:
    """floor(ln(x)^2) for x > 2, otherwise int(x) (BARS Criteo x4); nan stays nan."""
    logarithm = np.log(np.maximum(np.nan_to_num(raw), 1))
    return np.where(raw > 2, np.floor(logarithm**2), np.trunc(raw))


def quantile_edges(distinct: np.ndarray, counts: np.ndarray, num_bins: int) -> list[float]:
    """Ascending edges, from the least to the greatest number, with about equally many rows in each bin.

    distinct: numbers in any order, perhaps with nan, and their row counts (V,). Rows with the least number are not
    counted (many columns are mostly 0): the bins divide the rows above it.
    """
    order = np.argsort(distinct)
    order = order[(counts[order] > 0) & ~np.isnan(distinct[order])]
    distinct, counts = distinct[order], counts[order]
    if len(distinct) < 2:
        least = float(distinct[0]) if len(distinct) else 0.0
        return [least, least + 1]
    share = counts[1:].cumsum() / counts[1:].sum()
    upper = distinct[1:][np.searchsorted(share, np.linspace(0, 1, num_bins + 1)[:-1])]
    return np.unique([distinct[0], *upper, distinct[-1]]).tolist()


@dataclass(frozen=True)
class Number:
    """One dense input, centred by mean and divided by std, both of the transformed training rows.

    edges: of the bins of a number that the model encodes itself (PIECEWISE).
    """

    name: str
    transform: str
    mean: float = 0.0
    std: float = 1.0
    edges: list[float] | None = None

    @classmethod
    def fit(cls, name: str, transform: str, raw: np.ndarray, counts: np.ndarray, num_bins: int) -> "Number":
        """raw: distinct numbers (V,), nan if missing; counts: of each in training rows (V,)."""
        if transform == PIECEWISE:
            return cls(name, transform, edges=quantile_edges(raw, counts, num_bins))
        is_clamped = transform == "clamped_log"
        logs = clamped_log(raw) if is_clamped else log(raw)
        known = (counts > 0) & ~np.isnan(logs)
        logs, counts = logs[known].astype(np.float64), counts[known]
        if len(logs) < 2 or logs.min() == logs.max():  # its deviation would be 0 or a rounding error
            return cls(name, transform, float(logs[0]) if len(logs) and not is_clamped else 0.0)
        mean = np.average(logs, weights=counts)
        std = np.average((logs - mean) ** 2, weights=counts) ** 0.5
        return cls(name, transform, 0.0 if is_clamped else float(mean), float(std))

    @property
    def has_flag(self) -> bool:
        """Whether there is an additional 0/1 input for "missing"."""
        return self.transform.endswith("+missing")

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """The inputs float32: 0 if missing, with PIECEWISE nan."""
        if self.transform == PIECEWISE:
            return raw.astype(np.float32)
        if self.transform == "clamped_log":
            return (clamped_log(raw) / np.float64(self.std)).astype(np.float32)
        return np.nan_to_num((log(raw) - self.mean) / self.std).astype(np.float32)


def as_category(kind: str, edges: list[float] | None, raw: np.ndarray) -> np.ndarray:
    """The category of each number, as a number; nan stays nan."""
    if kind == "quantile":
        assert edges is not None
        return np.where(np.isnan(raw), np.nan, np.searchsorted(edges[1:-1], raw, side="right"))
    return (bucket(raw) if kind == "bucket" else raw) + 0.0  # no -0
