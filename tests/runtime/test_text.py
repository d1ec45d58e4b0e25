"""Foreign text on its way out: what a terminal, a spreadsheet and a JSON reader make of it."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgssl.runtime.text import csv_text, json_text, shown


@given(st.one_of(st.text(), st.binary(), st.binary().map(os.fsdecode)))
def test_shown_is_one_line_that_steers_nothing_and_shows_the_same_again(name: str | bytes) -> None:
    text = shown(name)
    assert text.splitlines() in ([text], [])
    assert text.encode("utf-8").decode() == text == shown(text)
    assert {unicodedata.category(c) for c in text} & {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"} == set()
    assert not any(unicodedata.bidirectional(c) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
                   for c in text)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Žluťoučký kůň 👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3 漢字 হিন্দি.jpg", None),  # every ordinary name
        ("a [bold]b[/] :bird: \\n %s {x}", None),  # markup of others is text
        ("x\n   1  0.9999  forged.jpg", "x\\n   1  0.9999  forged.jpg"),
        ("\x1b[31mred\x07\r\t\x00", "\\x1b[31mred\\x07\\r\\t\\x00"),
        ("gpj.\u202eexe\u2066", "gpj.\\u202eexe\\u2066"),  # right to left
        ("a\u200bb\u200dc\ufe0fd\ufeff\u3164\u115f", "a\\u200bb\\u200dc\\ufe0fd\\ufeff\\u3164\\u115f"),  # invisible
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),  # other line breaks
        (b"caf\xe9\xff.jpg", "caf\\xe9\\xff.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), "caf\\xe9.jpg"),
        ("lone \ud800", "lone \\ud800"),
        (Path("a\nb"), "a\\nb"),
    ],
)
def test_shown(name: str | bytes | Path, expected: str | None) -> None:
    assert shown(name) == (name if expected is None else expected)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "＝"])  # noqa: RUF001
def test_a_spreadsheet_runs_no_class_name(start: str) -> None:
    table = csv_text([("class", "top1"), (f"{start}HYPERLINK(1)", -3.5), ('a,"b"\n\x1b', 2)])
    rows = list(csv.reader(io.StringIO(table)))
    assert rows == [["class", "top1"], [f"'{start}HYPERLINK(1)", "-3.5"], ['a,"b"\\n\\x1b', "2"]]
    assert csv_text([("\t=1", "a-b", "-")]) == "\\t=1,a-b,'-\n"


@given(st.one_of(st.text(), st.binary().map(os.fsdecode)))
def test_json_holds_the_true_name(name: str) -> None:
    text = json_text({"path": name})
    assert text.isascii() and json.loads(text) == {"path": name}
    assert os.fsencode(json.loads(json_text(os.fsdecode(b"\xe9\n")))) == b"\xe9\n"
