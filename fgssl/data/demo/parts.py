"""The three parts of the demo set's birds that tell the class: beak, crown and the pattern on the wing.

All of them are drawn on the layer PARTS, and none of them draws a random number. Their own colours help to tell the
kinds apart (a crest is red, a cap is black), but the same hues occur on bodies, berries and flowers.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from fgssl.data.demo.scene import PARTS, Colour, Paper, Points, colour_of, shade

BEAKS = ("hooked", "dagger", "cone", "spoon")
CROWNS = ("crested", "capped", "striped", "plumed")
WINGS = ("barred", "spotted", "patched", "streaked")

Tone: TypeAlias = tuple[float, float, float]  # hue, saturation, value


class Traits(NamedTuple):
    """What tells the class: one of BEAKS, one of CROWNS and one of WINGS."""

    beak: str
    crown: str
    wing: str


class Frame(NamedTuple):
    """An affine map from a shape's own coordinates to pixels of the finished picture."""

    matrix: Points  # (2, 2)
    origin: Points  # (2,)

    def place(self, points: Points) -> Points:
        """Points (P, 2) of this frame in pixels; also one point (2,)."""
        placed: Points = points @ self.matrix.T + self.origin
        return placed

    def turned(self, pivot: Points, angle: float, size: float = 1.0) -> Frame:
        """A frame inside this one: its origin at `pivot`, turned by `angle` radians, `size` times as large."""
        return Frame(self.matrix @ rotation(angle) * size, self.place(pivot))


def rotation(angle: float) -> Points:
    """The (2, 2) matrix that turns by an angle in radians."""
    return np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])


def smooth(corners: list[tuple[float, float]], steps: int = 6) -> Points:
    """A closed Catmull-Rom curve through the corners -> (steps * corners, 2)."""
    p1 = np.array(corners)[:, None]
    p0, p2, p3 = (np.roll(p1, shift, axis=0) for shift in (1, -1, -2))
    t = np.arange(steps)[None, :, None] / steps
    curve: Points = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return 0.5 * curve.reshape(-1, 2)


# The shapes of a wing are in the wing's frame: the origin is the shoulder, -x along the folded wing.
PANEL = smooth([(-0.04, 0.06), (-0.22, -0.18), (-0.52, -0.2), (-0.8, -0.04), (-0.8, 0.18), (-0.52, 0.32), (-0.2, 0.25)])
# Those of a head are in the head's: radius 1, looking along x.
CIRCLE = smooth([(np.cos(a), np.sin(a)) for a in np.arange(8) * np.pi / 4])
REACH = np.array([(0.0, -1.75), (-0.95, -1.55), (1.95, 0.0), (1.6, 0.6), (-0.6, 0.9)])  # of the longest crest and beak


def dot(x: float, y: float, size: float) -> Points:
    """A disc as a polygon, so that it turns and flips with its frame."""
    return CIRCLE * size + (x, y)


_SPOTS = [(-0.28, -0.06), (-0.5, -0.06), (-0.7, -0.06), (-0.2, 0.17), (-0.42, 0.17), (-0.64, 0.17)]
_WING_PATTERNS = {
    "barred": [
        np.array([(x, low), (x + 0.14, low), (x + 0.14 - 0.04, high), (x - 0.04, high)])
        for x, low, high in [(-0.36, -0.18, 0.28), (-0.68, -0.1, 0.24)]
    ],
    "spotted": [dot(x, y, 0.075) for x, y in _SPOTS],
    "patched": [smooth([(-0.16, 0.06), (-0.42, -0.12), (-0.7, 0.06), (-0.42, 0.24)])],
    "streaked": [np.array([(-0.16, y), (-0.74, y + 0.02), (-0.74, y + 0.1), (-0.16, y + 0.08)]) for y in (-0.1, 0.12)],
}


def draw_panel(paper: Paper, wing: Frame, pattern: str, ground: Colour, tone: Tone) -> None:
    """A dark panel on the wing's coverts with a light pattern; the four patterns cover about the same area."""
    paper.polygon(wing.place(PANEL), ground, PARTS)
    for shape in _WING_PATTERNS[pattern]:
        paper.polygon(wing.place(shape), _toned((0.13, 0.2, 0.93), tone), PARTS)


def _toned(base: Tone, change: Tone) -> Colour:
    return colour_of(base[0] + change[0], base[1] + change[1], base[2] + change[2])


_CAP = smooth([(0.78, -0.62), (0.35, -0.98), (-0.2, -1.02), (-0.75, -0.72), (-0.98, -0.3), (-0.5, -0.42), (0.1, -0.5)])
_STRIPES = (
    smooth([(0.72, -0.58), (0.3, -0.68), (-0.3, -0.66), (-0.9, -0.36), (-0.98, -0.26), (-0.5, -0.42), (0.1, -0.5)]),
    smooth([(0.5, -0.82), (0.2, -1.0), (-0.25, -1.02), (-0.72, -0.74), (-0.86, -0.52), (-0.35, -0.82), (0.1, -0.85)]),
)
_SPIKES = tuple(
    np.array([(x, y), (x - 0.62, y - 0.72 + 0.18 * k), (x - 0.5, y + 0.16)])
    for k, (x, y) in enumerate([(0.45, -0.85), (0.1, -0.98), (-0.25, -0.92)])
)


def draw_crown(paper: Paper, head: Frame, kind: str, tone: Tone) -> None:
    """A red crest, a black cap, black and white stripes or a blue cap with a plume."""
    black, white, red, blue = (
        _toned(base, tone) for base in ((0.6, 0.2, 0.16), (0.12, 0.15, 0.93), (0.01, 0.75, 0.8), (0.6, 0.65, 0.6))
    )
    paper.polygon(head.place(_CAP), {"crested": red, "capped": black, "striped": white, "plumed": blue}[kind], PARTS)
    if kind == "crested":
        for spike in _SPIKES:
            paper.polygon(head.place(spike), red, PARTS)
    elif kind == "striped":
        for stripe in _STRIPES:
            paper.polygon(head.place(stripe), black, PARTS)
    elif kind == "plumed":
        stalk = np.array([(0.3, -0.85), (0.3, -1.3), (0.6, -1.55)])
        paper.line(head.place(stalk), blue, 2.2, PARTS)
        paper.polygon(head.place(dot(0.72, -1.5, 0.24)), blue, PARTS)


_BEAKS = {
    "hooked": smooth([(0.78, -0.34), (1.2, -0.4), (1.6, -0.12), (1.66, 0.5), (1.42, 0.2), (1.2, 0.3), (0.85, 0.36)]),
    "dagger": np.array([(0.88, -0.2), (1.3, -0.14), (1.95, 0.04), (1.3, 0.2), (0.86, 0.26)]),
    "cone": np.array([(0.72, -0.5), (1.15, -0.36), (1.52, 0.06), (1.1, 0.38), (0.78, 0.52)]),
    "spoon": smooth(
        [(0.9, -0.14), (1.35, -0.08), (1.62, -0.26), (1.92, -0.1), (1.92, 0.2), (1.62, 0.34), (1.35, 0.16), (0.9, 0.22)]
    ),
}
_BEAK_TONES = ((0.13, 0.75, 0.9), (0.6, 0.15, 0.2), (0.04, 0.75, 0.85), (0.6, 0.1, 0.7))  # in the order of BEAKS


def draw_beak(paper: Paper, head: Frame, kind: str, tone: Tone) -> None:
    """A short hook, a long dagger, a thick cone or a spoon, the lower half darker."""
    shape, colour = _BEAKS[kind], _toned(_BEAK_TONES[BEAKS.index(kind)], tone)
    paper.polygon(head.place(shape), colour, PARTS)
    paper.polygon(head.place(shape[shape[:, 1] > 0.0]), shade(colour, 0.7), PARTS)
