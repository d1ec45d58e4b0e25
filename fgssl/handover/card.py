"""The model card: what an encoder was trained on, by which commands, what it reaches and where it ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from fgssl.config.schema import PretrainConfig
from fgssl.encoder import Encoder
from fgssl.runtime.text import shown

CARD_FILE = "README.md"
Z_95 = 1.959964  # of a normal distribution, two-sided


class Card(NamedTuple):
    """What a card tells of."""

    name: str  # OWNER/NAME
    encoder: Encoder
    config: PretrainConfig  # as it is handed on
    summary: dict[str, Any]
    licence: str | None
    picture: str | None  # its file beside the card


def card(facts: Card) -> str:
    """The card as Markdown with the hub's metadata; every text from elsewhere stands as code."""
    header: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-feature-extraction"}
    header["tags"] = ["timm", "fgssl", "self-supervised", "fine-grained"]
    if facts.licence is not None:
        header["license"] = facts.licence
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"code": code}
    return environment.get_template("card.md").render(
        **facts._asdict(), header=yaml.safe_dump(header, sort_keys=False).strip(), rows=rows(facts.summary),
        beside=facts.summary.get("against_start"), size=facts.encoder.backbone.image_size,
        unread=len(facts.summary.get("unreadable") or ()),
    )  # fmt: skip


def code(value: object) -> str:
    """Foreign text on a card: one line of code, which nothing in it can end."""
    text = shown(str(value)).replace("`", "'").replace("|", "/").strip()
    return f"`{text or '-'}`"


def rows(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The retrieval rows of a run: rank-1 with its interval, and mAP, in percent."""
    found = []
    for row in summary["retrieval"]:
        low, high = wilson(row["rank1"] / 100, row["queries"])
        found.append({
            "encoder": str(row["encoder"]), "pool": str(row["pool"]), "rank1": f"{row['rank1']:.1f}",
            "interval": f"{100 * low:.1f} to {100 * high:.1f}", "map": f"{row['mAP']:.1f}",
            "queries": str(row["queries"]),
        })  # fmt: skip
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` (Wilson, 1927)."""
    spread = Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    reach = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)
