"""Features of a slice judged: retrieval across and within, and where asked a linear probe."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fgssl.evaluation.probing.classifiers import linear_probe
from fgssl.evaluation.retrieval.metrics import evaluate_retrieval


def pooling_row(
    branch: str,
    pooling: str,
    searched: Tensor,
    gallery_labels: Tensor,
    asked: Tensor,
    labels: Tensor,
    *,
    probe: bool,
) -> dict[str, Any]:
    """A row of kind "pooling" (percent): gallery and query features (N, D) with their labels (N,)."""
    across = evaluate_retrieval(asked, labels, gallery=searched, gallery_labels=gallery_labels).to_dict()
    alone = evaluate_retrieval(asked, labels).to_dict()
    row: dict[str, Any] = {"kind": "pooling", "branch": branch, "pooling": pooling}
    row |= {"rank1": across["rank1"], "mAP": across["mAP"]}
    row |= {"loo_rank1": alone["rank1"], "loo_mAP": alone["mAP"]}
    if probe:
        row["probe"] = linear_probe(searched, gallery_labels, asked, labels).top1
    return row
