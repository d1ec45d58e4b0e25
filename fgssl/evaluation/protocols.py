"""Published evaluations by name: what each is, in words, and where it is from. Nothing here computes."""

from __future__ import annotations

from typing import NamedTuple


class Protocol(NamedTuple):
    """An evaluation that papers share."""

    definition: str
    source: str
    metrics: tuple[str, ...]  # that are shown, in this order
    ks: tuple[int, ...] = ()  # of Recall@k, named rank1, rank2, ...
    precision_ks: tuple[int, ...] = ()  # of precision@k


_PAPER = "Shu, van den Hengel, Liu, Learning Common Rationale ..., CVPR 2023, section 4"


def _ranks(*ks: int) -> tuple[str, ...]:
    return tuple(f"rank{k}" for k in ks)


RETRIEVAL: dict[str, Protocol] = {
    "paper": Protocol(
        "every image of the test split searches all the others of it (leave-one-out): rank-1, rank-5 and the mean "
        "average precision over the full ranking, by cosine",
        _PAPER,
        ("rank1", "rank5", "mAP"),
        (1, 5),
    ),
    "class-disjoint": Protocol(
        "the images of the last half of the classes, of all splits, search each other (leave-one-out): Recall@1, 2, "
        "4, 8, MAP@R and R-precision, by cosine; nothing may have been trained on these classes (pretrain with "
        "--set data.train_split=first-classes). Where no class of the test split is in the train split (Stanford "
        "Online Products), its test split searches itself: Recall@1, 10, 100, 1000",
        "classes and Recall@k: Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016 "
        "(CUB 100 and 100 classes, Cars 98 and 98); MAP@R: Musgrave et al., A Metric Learning Reality Check, ECCV 2020",
        (*_ranks(1, 2, 4, 8), "mAP_at_R", "r_precision"),
        (1, 2, 4, 8),
    ),
    "query-gallery": Protocol(
        "the images of the split query search those of the split gallery: Recall@1, 10, 20, 30 and the mean average "
        "precision, by cosine",
        "Liu et al., DeepFashion: Powering Robust Clothes Recognition and Retrieval, CVPR 2016 (the In-Shop lists); "
        "these k are the usual ones of metric learning",
        (*_ranks(1, 10, 20, 30), "mAP"),
        (1, 10, 20, 30),
    ),
    "precision": Protocol(
        "every image of the test split searches all the others of it (leave-one-out): the share of its class among "
        "the first k, k = 1, 5, 10, of which a class of fewer images cannot fill all",
        "Manning et al., Introduction to Information Retrieval, 2008, section 8.4",
        ("precision_at_1", "precision_at_5", "precision_at_10"),
        (1,),
        (1, 5, 10),
    ),
    "knn": Protocol(
        "the k nearest images of the train split by cosine vote for the class of a test image with exp(cosine / "
        "0.07), k = 10, 20, 100, 200: top-1; rank1 is the nearest alone",
        "Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section 3.4; "
        "k and temperature as in Caron et al., Emerging Properties in Self-Supervised Vision Transformers (DINO), "
        "ICCV 2021, and its eval_knn.py",
        ("rank1", "knn_10", "knn_20", "knn_100", "knn_200"),
        (1,),
    ),
}
KNN_KS, KNN_TEMPERATURE = (10, 20, 100, 200), 0.07
LISTS_KS = (1, 10, 100, 1000)  # of class-disjoint where the source's own lists are so

PROBE: dict[str, Protocol] = {
    "paper": Protocol(
        "a linear layer on frozen, l2-normalised features of random-resized crops and flips, SGD with lr 30 divided "
        "by 10 at epochs 60 and 80 of 100, batch 256, no weight decay; on 100, 50 and 20 % of the train labels (drawn "
        "by class, as the authors' lists are not public); top-1 on the test split, the last epoch",
        _PAPER,
        ("top1",),
    ),
}
PAPER_SHARES = (1.0, 0.5, 0.2)
