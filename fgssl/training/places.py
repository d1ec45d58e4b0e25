"""Where crops hold the object: the rationale teaches which views are compared (`views.place`).

ContrastiveCrop (Peng et al., "Crafting Better Contrastive Views for Siamese Representation Learning", CVPR 2022): two
crops anywhere may show different things, and are learned to be the same. So after a warm-up each picture's object is
found by a map of the run's own, anew at regular intervals, and the middle of a crop is drawn inside (its semantic-aware
localization). Ours: the rationale's map, not the sum of the features; the window of zoom's side that holds most of it,
not the box above a threshold; an even draw, not one that avoids the middle (its center-suppressed sampling); of a share
of the crops alone, as a map that is wrong must not hide the rest of a picture for good; none where the map is flat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from fgssl.adaptation.whitening import sample_rows
from fgssl.config.schema import filled
from fgssl.data.feed import HIDDEN_SIDE, CropBatch, Key, Place, WholeDataset, build_feed
from fgssl.encoder import evaluated
from fgssl.rationale import PlaceScatter, crop_windows, fullest_windows, window_share
from fgssl.training.model import require_finite
from fgssl.training.results import save_view_pairs
from fgssl.training.setup import Setup

BATCH = 64
SAMPLE = 1000  # pictures that tell what all places share
STREAM = 0x91ACE  # of random numbers: those of the control
Windows = NDArray[np.float64]  # (N, 5): `Place` of each of a split's pictures, NaN for none


class Places:
    """Windows of a run's training pictures, the same in every process and part of its saved state."""

    def __init__(self, setup: Setup, *, workers: int) -> None:
        self.setup, self.views = setup, setup.plan.config.views
        self.workers = workers if setup.views.pixels.decodes else 0
        self.found: dict[int, Windows] = {}  # by the epoch at whose beginning they were; those that a log line may span
        self._seconds = 0.0

    @property
    def warmup(self) -> int:
        """Epochs after which windows are found, and found anew; 0: never, or once."""
        return 0 if self.views.place == "anywhere" else filled(self.views.place_warmup)

    def at(self, epoch: int) -> Windows | None:
        """The windows on which crops of an epoch lie, found where it is the first with them; None before any."""
        if self.views.place == "anywhere" or epoch < self.warmup:
            return None
        due = self._due(epoch)
        if due not in self.found:
            begun = time.perf_counter()
            recent = due - filled(self.setup.plan.config.training.log_every) // self.setup.plan.steps_per_epoch
            kept = {past: windows for past, windows in self.found.items() if self._due(recent - 1) <= past < due}
            self.found = {**kept, due: self._find(due)}
            self._seconds += time.perf_counter() - begun
        return self.found[due]

    def known(self, epoch: int) -> Windows | None:
        """The same of an epoch that is over or under way."""
        return self.found.get(self._due(epoch))

    def took(self) -> float:
        """Seconds of finding since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def state(self) -> dict[str, dict[int, Tensor]]:
        """What a saved run is to know; nothing where nothing was found."""
        found = {epoch: torch.from_numpy(windows) for epoch, windows in self.found.items()}
        return {"places": found} if found else {}

    def restore(self, state: Mapping[int, Tensor]) -> None:
        """Undo of `state`; of a split that had other pictures they are found anew."""
        total = len(self.setup.plan.train)
        self.found = {epoch: windows.numpy() for epoch, windows in state.items() if len(windows) == total}

    def _due(self, epoch: int) -> int:
        return epoch - epoch % self.warmup if self.warmup else 0

    def _find(self, epoch: int) -> Windows:
        """One pass over the training pictures, shared out, in eval mode: nothing random, nothing left behind."""
        setup, accelerator = self.setup, self.setup.accelerator
        total, world = len(setup.plan.train), accelerator.num_processes
        own, share = range(accelerator.process_index, total, world), window_share(self.views)
        found, encoder = list[tuple[list[int], Tensor]](), setup.model.encoder
        setup.detector.at("finding where the objects of the training pictures are")
        require_finite(setup.model, epoch * setup.plan.steps_per_epoch)
        with torch.no_grad(), evaluated(encoder), accelerator.autocast(), setup.model.objective.uncompiled():
            attend = self._attend()
            for batch in self._batches(own):
                maps = attend(self._feature_map(batch)).float().cpu()
                told = fullest_windows(maps, HIDDEN_SIDE * share)  # what is hidden
                found.append((batch.index.tolist(), torch.cat([crop_windows(maps, share), told], 1)))
        windows = np.full((total, len(Place._fields)), np.nan)
        for rows, its in gather_object(found):
            windows[rows] = its.double().numpy()
        if self.views.place == "middle":
            windows[:, [0, 1, 3, 4]] = 0.5
        elif self.views.place == "random":
            random, side = np.random.default_rng([setup.views.seed, epoch, STREAM]), windows[:, 2:3]
            for first, sides in ((0, side), (3, HIDDEN_SIDE * side)):
                windows[:, first : first + 2] = sides / 2 + random.random((total, 2)) * (1 - sides)
        windows[np.isnan(windows[:, 2])] = np.nan
        if setup.is_main:
            self._tell(epoch, windows)
        return windows

    def _tell(self, epoch: int, windows: Windows) -> None:
        save_view_pairs(self.setup.output, self.setup.plan, self.setup.views, epoch=epoch, windows=windows)
        sides = windows[np.isfinite(windows[:, 2]), 2]
        place, hide = (f"{100 * share:g} % of the crops" for share in (self.views.place_share, self.views.hide_share))
        words = f"views.place {self.views.place}: from epoch {epoch + 1} on, in {len(sides)} of {len(windows)} images,"
        if len(sides):
            done = [f"{place} lie on windows of {sides.mean():.2f} of the side"] * (self.views.place_share > 0)
            done += [f"{hide} have a square of {HIDDEN_SIDE * sides.mean():.2f} hidden"] * (self.views.hide_share > 0)
            self.setup.reporter.note(f"{words} {' and '.join(done)}: see places.png")
        else:
            self.setup.reporter.warn(f"{words} as the maps of all are flat: crops go on to lie anywhere")

    def _attend(self) -> Callable[[Tensor], Tensor]:
        """Feature map -> the map (N, H, W), not negative, by which zoom looks again as well."""
        encoder = self.setup.model.encoder
        if self.setup.plan.config.rationale.windows != "common":
            return encoder.attention
        scatter = PlaceScatter(encoder.backbone.channels)
        for batch in self._batches(sample_rows(len(self.setup.plan.train), SAMPLE)):
            scatter.add(self._feature_map(batch))
        colocalizer = scatter.colocalizer()
        if colocalizer is None:  # nothing is common to them
            return lambda feature_map: torch.zeros_like(feature_map[:, 0])
        return colocalizer.to(encoder.device)

    def _feature_map(self, batch: CropBatch) -> Tensor:
        encoder = self.setup.model.encoder
        return encoder.maps(batch.images.to(encoder.device))[0]  # as it is: finer ones come along with it

    def _batches(self, rows: Sequence[int]) -> Iterator[CropBatch]:
        """Whole pictures of those rows that can be read."""
        wholes = WholeDataset(self.setup.views.pixels, size=self.setup.plan.backbone.image_size, seed=0)
        keys = [[Key(0, row) for row in rows[start : start + BATCH]] for start in range(0, len(rows), BATCH)]
        feed = build_feed(wholes, keys, workers=self.workers, pin=False)  # type: ignore[arg-type]
        feed.generator = torch.Generator()  # as that of the steps has: a loader draws one number when it starts
        for number, batch in enumerate(feed, 1):
            if len(batch.index):
                yield batch
            self.setup.reporter.progress("finding places", min(number * BATCH, len(rows)), len(rows))
