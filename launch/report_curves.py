"""Curves against tokens, time or steps, thinned so that the longest run still makes a small page."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

MOST_POINTS = 2000
MEANS = 400
"""Points of the mean that lies over a longer curve."""


@dataclass(frozen=True)
class Curve:
    """A curve against what the reader chooses: tokens, time or steps."""

    name: str
    colour: int
    """Number of the page's colour."""
    tokens: NDArray[np.float64]
    time: NDArray[np.float64]
    """In the report's `TimeUnit`."""
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    dashed: bool = False
    symbol: str | None = None
    """Points alone, of this shape; none: a line."""
    texts: tuple[str, ...] = ()
    """What to say at each point in place of its value."""

    def traces(self) -> list[dict[str, Any]]:
        """The curve, and over one of many points its mean, since noise alone draws a solid band."""
        kept = thinned(self.values, MOST_POINTS)
        if self.symbol or len(self.values) <= MEANS:
            return [self._trace(kept)]
        pale = {**self._trace(kept), "opacity": 0.35, "showlegend": False, "hoverinfo": "skip", "hovertemplate": None}
        pale["line"] = {**pale["line"], "width": 1}
        return [pale, self._mean()._trace(np.arange(MEANS))]

    def _mean(self) -> "Curve":
        """Means of even stretches, of the points that are numbers."""
        edges = np.linspace(0, len(self.values), MEANS + 1).astype(np.int64)
        known = np.isfinite(self.values)
        counts = np.add.reduceat(known, edges[:-1], dtype=np.int64)
        with np.errstate(invalid="ignore"):
            values = np.add.reduceat(np.where(known, self.values, 0.0), edges[:-1]) / counts
        lengths = np.diff(edges)
        tokens, time, steps = (
            np.add.reduceat(axis, edges[:-1]) / lengths for axis in (self.tokens, self.time, self.steps)
        )
        return replace(self, tokens=tokens, time=time, steps=steps, values=values)

    def _trace(self, kept: NDArray[np.int64]) -> dict[str, Any]:
        """The plotly trace of some points; `meta` tells the page's script its colour and its three x axes."""
        xs = {"tokens": self.tokens, "time": self.time, "steps": self.steps}
        few = len(kept) <= 40
        texts = {"text": [self.texts[point] for point in kept]} if self.texts else {}
        scatter = go.Scatter(
            name=self.name,
            x=plain_numbers(self.tokens[kept]),
            y=plain_numbers(self.values[kept]),
            mode="markers" if self.symbol else "lines+markers" if few else "lines",
            line={"width": 2, "dash": "dash" if self.dashed else "solid"},
            marker={"size": 10 if self.symbol else 5, "symbol": self.symbol or "circle"},
            hovertemplate=f"%{{{'text' if texts else 'y'}}}<extra>%{{fullData.name}}</extra>",
            **texts,
            meta={"colour": self.colour, "x": {name: plain_numbers(values[kept]) for name, values in xs.items()}},
        )
        plain: dict[str, Any] = scatter.to_plotly_json()
        return plain


def thinned(values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Numbers of at most `most` points to draw: the lowest and the highest of each stretch, so that no spike is lost,
    with the first and the last point."""
    count = len(values)
    if count <= most:
        return np.arange(count)
    edges = np.linspace(0, count, (most - 2) // 2 + 1).astype(np.int64)
    kept = {0, count - 1}
    for start, end in pairwise(edges):
        stretch = values[start:end]
        finite = np.flatnonzero(np.isfinite(stretch))
        if len(finite):
            kept.add(int(start + finite[np.argmin(stretch[finite])]))
            kept.add(int(start + finite[np.argmax(stretch[finite])]))
    return np.array(sorted(kept), dtype=np.int64)


def plain_numbers(values: NDArray[Any]) -> list[float | None]:
    """Six digits of each value; none for what is no number, which JSON cannot say."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
