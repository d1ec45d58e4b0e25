"""The birds of the demo set: one plump songbird, and the three parts of it that tell its class.

A picture is drawn in two steps. `draw_nuisance` draws from a random generator everything that does NOT depend on the
class (pose, scale, place, colours, scene); `paint` draws the picture of a nuisance and a class, and takes no random
number that depends on the class. So two classes painted from one nuisance differ in the class-telling parts and nowhere
else.

Shapes are polygons in three nested frames (x forward, y down): the body's, whose half-length is 1; the wing's, about
the shoulder; the head's, whose radius is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fgssl.data.demo import parts, scene
from fgssl.data.demo.parts import Frame, Tone, Traits, dot, smooth
from fgssl.data.demo.scene import IMAGE_SIZE, OBJECT, SUPERSAMPLE, Colour, Paper, Points, colour_of, shade

HEAD_CENTRE = np.array([0.70, -0.66])
HEAD_RADIUS = 0.64
SHOULDER = np.array([0.42, -0.18])

Scenery: TypeAlias = Callable[[Paper, np.random.Generator, "Nuisance"], None]


class Nuisance(NamedTuple):
    """Everything about a picture but its class."""

    body: Frame
    head: Frame
    wing: Frame
    tail_angle: float
    plumage: tuple[Colour, Colour, Colour, Colour]  # back, belly, wing, cheek
    tones: tuple[Tone, Tone, Tone]  # small changes of the colours of beak, crown and wing panel
    leg: Colour
    season: scene.Season
    scene_seed: int  # of the scenery, which is drawn while painting


class Ground(NamedTuple):
    """How large a picture is, how large its bird, and what else is drawn."""

    side: int  # of the picture, in pixels
    scale: tuple[float, float]  # least and largest half-length of the body, in pixels
    margin: float  # around the parts and most of the body, in pixels
    behind: Scenery
    before: Scenery


class Drawing(NamedTuple):
    """A picture and where its bird and its class-telling parts are visible."""

    picture: Image.Image  # RGB, (IMAGE_SIZE, IMAGE_SIZE) unless asked otherwise
    bird: npt.NDArray[np.bool_]  # of the same size, as the next
    parts: npt.NDArray[np.bool_]  # inside `bird`


# Body frame
_BODY = smooth([(0.95, -0.35), (1.0, 0.1), (0.8, 0.52), (0.35, 0.8), (-0.2, 0.74), (-0.75, 0.42), (-1.15, 0.12),
                 (-1.1, -0.12), (-0.7, -0.36), (-0.2, -0.6), (0.25, -0.88), (0.7, -0.9)])  # fmt: skip
_TAIL = np.array([(-0.85, -0.2), (-1.5, -0.2), (-1.85, -0.12), (-1.9, 0.14), (-1.5, 0.2), (-0.85, 0.25)])
# Wing frame: the origin is the shoulder, -x along the folded wing
_WING = smooth([(0.08, 0.02), (-0.1, -0.24), (-0.6, -0.3), (-1.1, -0.12), (-1.62, 0.2), (-1.1, 0.3), (-0.6, 0.42),
                 (-0.12, 0.32)])  # fmt: skip
_QUILLS = tuple(np.array([(-0.75, y), (-1.1, y * 0.7 + 0.06), (-1.5, 0.17)]) for y in (-0.12, 0.06, 0.24))
# Hues of the coats: few, so that a coat does not tell one bird from all others
COATS = (0.03, 0.12, 0.3, 0.5, 0.65, 0.83)
# Saturation and brightness of back, belly, wing and cheek
_SATURATION = ((0.3, 0.4), (0.15, 0.2), (0.3, 0.4), (0.15, 0.2))
_BRIGHTNESS = ((0.48, 0.54), (0.72, 0.78), (0.45, 0.5), (0.62, 0.68))
# Head frame
_CHEEK = smooth([(0.75, 0.2), (0.3, 0.0), (-0.3, 0.12), (-0.45, 0.5), (0.0, 0.8), (0.55, 0.65)])
_EYE = (
    ((0.36, -0.1, 0.21), (235, 230, 215)),
    ((0.36, -0.1, 0.165), (20, 16, 18)),
    ((0.36 + 0.05, -0.1 - 0.07, 0.055), (250, 250, 250)),
)


def draw_nuisance(rng: np.random.Generator, ground: Ground | None = None) -> Nuisance:
    """Draw pose, scale, place, colours and scene of one picture."""
    ground = ground or CALM
    flip = 1.0 if rng.random() < 0.5 else -1.0
    tilt, scale = rng.uniform(-0.75, 0.15), rng.uniform(*ground.scale)
    matrix = np.diag([flip, 1.0]) @ parts.rotation(tilt) * scale @ np.diag([1.0, rng.uniform(0.92, 1.06)])
    nod, droop = rng.uniform(-0.25, 0.45) - 0.6 * tilt, rng.uniform(-0.15, 0.2)
    body = Frame(matrix, _random_place(rng, Frame(matrix, np.zeros(2)), nod, droop, ground))
    hue = float(rng.choice(COATS)) + rng.normal(0, 0.01)
    coat = zip(_SATURATION, _BRIGHTNESS, strict=True)
    back, belly, wing, cheek = (colour_of(hue, rng.uniform(*grey), rng.uniform(*bright)) for grey, bright in coat)
    beak, crown, panel = ((rng.normal(0, 0.03), rng.uniform(-0.15, 0.15), rng.uniform(-0.12, 0.12)) for _ in range(3))
    leg = colour_of(rng.uniform(0.02, 0.12), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.7))
    tail, season = rng.uniform(-0.35, 0.3), scene.draw_season(rng)
    frames = (body, body.turned(HEAD_CENTRE, nod, HEAD_RADIUS), body.turned(SHOULDER, droop))
    plumage, tones = (back, belly, wing, cheek), (beak, crown, panel)
    return Nuisance(*frames, tail, plumage, tones, leg, season, scene_seed=int(rng.integers(2**32)))


def _random_place(rng: np.random.Generator, body: Frame, nod: float, droop: float, ground: Ground) -> Points:
    """Anywhere such that the parts are inside the picture and most of the body is; the tail may leave it."""
    head = body.turned(HEAD_CENTRE, nod, HEAD_RADIUS).place(parts.REACH)
    wing = body.turned(SHOULDER, droop).place(parts.PANEL)
    needed = np.concatenate([head, wing, body.place(_BODY * 0.8)])
    low, high = ground.margin - needed.min(axis=0), ground.side - ground.margin - needed.max(axis=0)
    place: Points = (low + high) / 2 + np.maximum((high - low) / 2, 0) * rng.uniform(-1, 1, 2)
    return place


def paint(nuisance: Nuisance, traits: Traits, ground: Ground | None = None) -> Drawing:
    """Paint the picture of a nuisance and a class: a pure function of the two, and of the ground drawn for."""
    ground = ground or CALM
    rng = np.random.default_rng(nuisance.scene_seed)
    paper = Paper(scene.background(rng, nuisance.season), ground.side)
    ground.behind(paper, rng, nuisance)
    _plumage(paper, rng, nuisance)
    _wing(paper, nuisance)
    beak, crown, panel = nuisance.tones
    parts.draw_panel(paper, nuisance.wing, traits.wing, shade(nuisance.plumage[2], 0.28), panel)
    parts.draw_crown(paper, nuisance.head, traits.crown, crown)
    parts.draw_beak(paper, nuisance.head, traits.beak, beak)
    for place, colour in _EYE:
        paper.polygon(nuisance.head.place(dot(*place)), colour, OBJECT)
    ground.before(paper, rng, nuisance)
    layers = paper.visible_layers()
    picture = scene.light(paper.picture.reduce(SUPERSAMPLE), rng)
    return Drawing(picture, layers > scene.SCENERY, layers == scene.PARTS)


def _scenery_behind(paper: Paper, rng: np.random.Generator, nuisance: Nuisance) -> None:
    wood = nuisance.season.wood
    for _ in range(int(rng.integers(0, 2))):
        start, end = rng.uniform(-20, 148, 2), rng.uniform(-20, 148, 2)
        scene.branch(paper, start, end, rng.uniform(1.5, 5), shade(wood, rng.uniform(0.6, 1.2)), rng.normal(0, 5))
    for _ in range(int(rng.integers(0, 3))):
        scene.distractor(paper, rng, nuisance.season, rng.uniform(0, IMAGE_SIZE, 2))
    draw_perch(paper, rng, nuisance, reach=170, width=(5, 10))


def draw_perch(
    paper: Paper, rng: np.random.Generator, nuisance: Nuisance, *, reach: float, width: tuple[float, float]
) -> None:
    """Legs, and the branch under the feet, so many pixels long to either side."""
    legs = _legs(nuisance)
    foot, slope = legs[1][-1], rng.uniform(-0.35, 0.35)
    along = np.array([np.cos(slope), np.sin(slope)]) * reach
    scene.branch(paper, foot - along, foot + along, rng.uniform(*width), nuisance.season.wood, 0.0)
    for leg in legs:
        paper.line(leg, nuisance.leg, 1.7, OBJECT)


def _legs(nuisance: Nuisance) -> tuple[Points, Points]:
    """From hip to foot."""
    hips = nuisance.body.place(np.array([(0.02, 0.66), (0.3, 0.7)]))
    drop = 0.34 * np.sqrt(abs(np.linalg.det(nuisance.body.matrix)))
    return (np.array([hips[0], hips[0] + (1, drop)]), np.array([hips[1], hips[1] + (-1, drop)]))


def _plumage(paper: Paper, rng: np.random.Generator, nuisance: Nuisance) -> None:
    """Tail, then body and head as one soft coat from the back's colour to the belly's, lit from above."""
    tail = nuisance.body.turned(np.array([-0.9, 0.0]), nuisance.tail_angle)
    for lift, tone in ((-0.08, 0.7), (0.06, 0.95)):
        points = (_TAIL + np.array([0.9, 0.0])) * (1.0, 0.85) + np.array([0.0, lift])
        paper.polygon(tail.place(points), shade(nuisance.plumage[2], tone), OBJECT)
    stencil = Image.new("1", paper.picture.size)
    pen = ImageDraw.Draw(stencil)
    for frame, shape in ((nuisance.body, _BODY), (nuisance.head, parts.CIRCLE)):
        pen.polygon((frame.place(shape) * SUPERSAMPLE).ravel().tolist(), fill=1)
    paper.fill(_coat(rng, nuisance, paper.side), stencil, OBJECT)
    paper.polygon(nuisance.head.place(_CHEEK), nuisance.plumage[3], OBJECT)


def _coat(rng: np.random.Generator, nuisance: Nuisance, side: int) -> Image.Image:
    """Feathers for the whole picture: the back's colour fading into the belly's, with fluff and streaks."""
    (back, belly, _, _), body = nuisance.plumage, nuisance.body
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    forward, down = (
        (row[0] * (x - body.origin[0]) + row[1] * (y - body.origin[1])).astype(np.float32)
        for row in np.linalg.inv(body.matrix)
    )
    fluff = scene.noise(rng, 42, 42, side)
    weight = 0.5 + 2.6 * (down + 0.35 * forward - rng.uniform(0.0, 0.2)) + 0.3 * (fluff - 0.5)
    streaks = rng.uniform(0, 0.08) * np.clip(5 * scene.noise(rng, 30, 30, side) - 2.7, 0, 1)
    lit = (1.12 - 0.22 * down + 0.16 * (fluff - 0.5)) * (1 - streaks)
    return scene.to_picture(scene.blend(back, belly, weight) * lit[..., None])


def _wing(paper: Paper, nuisance: Nuisance) -> None:
    colour, frame = nuisance.plumage[2], nuisance.wing
    paper.polygon(frame.place(_WING * (1.0, 1.08) + (0.0, 0.03)), shade(colour, 0.55), OBJECT)
    paper.polygon(frame.place(_WING), colour, OBJECT)
    for quill in _QUILLS:
        paper.line(frame.place(quill), shade(colour, 0.6), 0.9, OBJECT)


def _scenery_before(paper: Paper, rng: np.random.Generator, nuisance: Nuisance) -> None:
    """Toes on the perch, and at times leaves in front; never right on the middle of a part."""
    draw_toes(paper, nuisance)
    for _ in range(int(rng.integers(0, 2))):
        centre = rng.uniform(0, IMAGE_SIZE, 2)
        if from_parts(nuisance, centre) > 27:
            scene.distractor(paper, rng, nuisance.season, centre)
    if rng.random() < 0.3:
        x, lean = rng.uniform(0, IMAGE_SIZE), rng.normal(0, 12)
        blade = np.array([(x - 2, IMAGE_SIZE + 2), (x + lean, rng.uniform(95, 118)), (x + 2, IMAGE_SIZE + 2)])
        paper.polygon(blade, scene.leaf_colour(rng, nuisance.season))


def draw_toes(paper: Paper, nuisance: Nuisance) -> None:
    """Three on each foot."""
    for _, foot in _legs(nuisance):
        for step in (-2.6, 0.0, 2.6):
            paper.line(foot + np.array([(0.0, -0.5), (step, 2.2)]), nuisance.leg, 1.4, OBJECT)


def from_parts(nuisance: Nuisance, point: Points) -> float:
    """Pixels from a point to the middle of the nearest part."""
    face, panel = nuisance.head.place(np.array([(1.3, 0.0), (0.0, -0.9)])), nuisance.wing.place(np.array([-0.45, 0.05]))
    return float(np.hypot(*(np.vstack([face, panel]) - point).T).min())


CALM = Ground(IMAGE_SIZE, (32, 42), 3, _scenery_behind, _scenery_before)
