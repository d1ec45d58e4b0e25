"""The wild ground: the same birds small and anywhere, among things as large and as bright, and partly covered.

The demo's own ground has one bird in the middle third of nearly every picture, so that a look at the middle finds it.
Here the place of the bird is uniform over the picture, and what is drawn beside it catches the eye as much: leaves,
berries and flowers, and lumps in the coats of the birds. Nothing of it depends on the class.
"""

from __future__ import annotations

import numpy as np

from fgssl.data.demo import scene
from fgssl.data.demo.bird import COATS, Ground, Nuisance, draw_perch, draw_toes, from_parts
from fgssl.data.demo.parts import CIRCLE, rotation
from fgssl.data.demo.scene import Paper, colour_of, shade

WILD_SIZE = 192
SCALE = (17.5, 26)  # half-length of the body: the bird takes 0.3 to 0.5 of the side
MARGIN = WILD_SIZE / 16 + 2  # the evaluation view, 0.875 of the side, shows what tells the class
COVERED = 0.7  # probability of a leaf over the bird
CLEAR = 0.75  # half-lengths of the body around the middle of a part that nothing covers


def _behind(paper: Paper, rng: np.random.Generator, nuisance: Nuisance) -> None:
    wood = nuisance.season.wood
    for _ in range(int(rng.integers(1, 4))):
        start, end = rng.uniform(-20, WILD_SIZE + 20, 2), rng.uniform(-20, WILD_SIZE + 20, 2)
        colour = shade(wood, rng.uniform(0.6, 1.2))
        scene.branch(paper, start, end, rng.uniform(1.5, 5), colour, rng.normal(0, 8))
    for _ in range(int(rng.integers(1, 4))):
        _lump(paper, rng, rng.uniform(0, WILD_SIZE, 2))
    for _ in range(int(rng.integers(4, 10))):
        place = rng.uniform(0, WILD_SIZE, 2)
        scene.distractor(paper, rng, nuisance.season, place, scale=rng.uniform(0.7, 1.6))
    draw_perch(paper, rng, nuisance, reach=rng.uniform(40, 110), width=(3, 7))


def _lump(paper: Paper, rng: np.random.Generator, centre: scene.Points) -> None:
    """A smooth thing of a bird's size, in a coat's colours, with a dark patch: a bird without what tells its kind."""
    turn, size = rotation(rng.uniform(0, 2 * np.pi)), rng.uniform(12, 26)
    shape = CIRCLE * (1.0, rng.uniform(0.55, 0.9)) * size @ turn.T
    colour = colour_of(float(rng.choice(COATS)) + rng.normal(0, 0.01), rng.uniform(0.2, 0.4), rng.uniform(0.48, 0.75))
    paper.polygon(shape + centre, shade(colour, 0.8))
    paper.polygon(shape * 0.85 + centre - 0.12 * size, colour)
    paper.polygon(shape * rng.uniform(0.25, 0.45) + centre + rng.uniform(-0.4, 0.4, 2) * size, shade(colour, 0.3))


def _before(paper: Paper, rng: np.random.Generator, nuisance: Nuisance) -> None:
    """Toes, at most times something over the bird, and now and then something anywhere; all parts stay to be seen."""
    draw_toes(paper, nuisance)
    length = float(np.sqrt(abs(np.linalg.det(nuisance.body.matrix))))
    near = [nuisance.body.place(rng.uniform((-1.9, -0.6), (0.6, 0.9)))] if rng.random() < COVERED else []
    for centre in (*near, *rng.uniform(0, WILD_SIZE, (int(rng.integers(0, 3)), 2))):
        if from_parts(nuisance, centre) > CLEAR * length:
            scene.distractor(paper, rng, nuisance.season, centre, scale=0.8)


WILD = Ground(WILD_SIZE, SCALE, MARGIN, _behind, _before)
