"""An encoder as a graph for a runtime: ONNX, or torch.export's program; kept only where it computes the same."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fgssl.encoder import Encoder, Pool
from fgssl.errors import FgsslError
from fgssl.runtime.extras import require
from fgssl.runtime.files import OutputKind, atomic_path

Format = Literal["onnx", "torch-export"]
POOLS: tuple[Pool, ...] = ("gap", "rationale", "concat", "zoom")
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # of embeddings, of length 1, and of maps relative to their largest number
BATCHES = (1, 3)  # on which a graph is checked; it is made of two
Results = list[NDArray[Any]]


def output_kind(kind: Format) -> OutputKind:
    """How such a file is known, which is by nobody's mark: one that is there is only replaced when asked."""
    return OutputKind("a graph", (SUFFIXES[kind],), lambda _: False)


class Graph(nn.Module):
    """Views (N, 3, S, S) uint8 -> embedding (N, D), feature map (N, C, h, w) and, with a rationale, its map (N, h, w).

    zoom takes larger views, looks twice, and tells where in `window`: (N, 2) row and column of its middle, in (0, 1).
    """

    def __init__(self, encoder: Encoder, pool: Pool) -> None:
        super().__init__()
        encoder.require(pool)
        self.encoder, self.pool = encoder, pool
        rationale = ["rationale"] if encoder.rationale is not None else []
        self.names = ["embedding", "feature_map", *rationale, *(["window"] if pool == "zoom" else [])]

    def forward(self, images: Tensor) -> list[Tensor]:
        """In the order of `names`."""
        encoder = self.encoder
        if self.pool == "zoom":
            maps = encoder.maps(encoder.shrunk(images))
            embedding = encoder.zoomed(images, maps)
        else:
            maps = encoder.maps(images)
            embedding = encoder.pool(maps, self.pool)
        found = [embedding, maps[0].contiguous()]
        if encoder.rationale is not None:
            found.append(encoder.attention(maps[0]))
        return [*found, encoder.window_centres(maps[0])] if self.pool == "zoom" else found


def export(encoder: Encoder, pool: Pool, kind: Format, path: Path) -> dict[str, Any]:
    """Write an encoder in eval mode, on the CPU, as a graph of any batch size, checked before it is kept.

    Returns what it takes and gives: `input` and `outputs` with shapes, and `difference`, the largest from PyTorch.
    Raises FgsslError: a library is missing, the model cannot be exported, or the graph computes something else.
    """
    for name in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        require(name, extra="export")
    graph = Graph(encoder, pool).eval()
    size = encoder.view_size(pool)
    chance = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 256, (n, 3, size, size), generator=chance).to(torch.uint8) for n in (2, *BATCHES)]
    with atomic_path(path) as temporary:
        try:
            with _silent(), torch.no_grad():
                run = (_to_onnx if kind == "onnx" else _to_program)(graph, batches[0], temporary)
                found = [run(images) for images in batches]
        except FgsslError:
            raise
        except Exception as error:  # the exporters raise all kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            problem = f"{encoder.backbone.name} with --pool {pool} cannot be exported to {kind} ({reason})"
            raise FgsslError(problem, "try --pool gap, or another --format") from error
        with torch.no_grad():
            wanted = [[output.numpy() for output in graph(images)] for images in batches]
        difference = max(map(_difference, wanted, found))
        if not difference <= TOLERANCE:
            problem = f"the graph differs from PyTorch by {difference:.2g}, more than {TOLERANCE:g}, and was not kept"
            raise FgsslError(problem, "try --pool gap, or another --format")
    shapes = {name: ["N", *output.shape[1:]] for name, output in zip(graph.names, wanted[0], strict=True)}
    return {"input": ["N", 3, size, size], "outputs": shapes, "difference": difference}


def _to_program(graph: Graph, images: Tensor, path: Path) -> Callable[[Tensor], Results]:
    program = torch.export.export(graph, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return lambda images: [output.numpy() for output in loaded(images)]


def _to_onnx(graph: Graph, images: Tensor, path: Path) -> Callable[[Tensor], Results]:
    shapes = {"images": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        graph, (images,), path, dynamo=True, dynamic_shapes=shapes, input_names=["images"], output_names=graph.names,
        external_data=False, verbose=False,
    )  # fmt: skip
    session = require("onnxruntime", extra="export").InferenceSession(path.read_bytes())
    return lambda images: list(session.run(None, {"images": images.numpy()}))


def _difference(wanted: Results, found: Results) -> float:
    """The largest difference of each output, relative to its largest number where that is above 1."""
    if [one.shape for one in wanted] != [one.shape for one in found]:
        return float("inf")
    return max(
        float(np.abs(one - other).max() / max(1.0, np.abs(one).max())) for one, other in zip(wanted, found, strict=True)
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what exporters tell developers."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
