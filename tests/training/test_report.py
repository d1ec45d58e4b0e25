"""report.html of a run: there after every run, whole by itself, and never a reason to lose one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from browser import needs_chromium, opened
from running import SHORT, fgssl, finished_run, photos, plain_run

from fgssl.drawing import PAGE
from fgssl.report.page import LARGEST
from fgssl.training import report


@needs_chromium
def test_a_finished_run_shows_its_parts_in_a_browser() -> None:
    path = finished_run()[0] / "report.html"
    assert PAGE.is_own(path) and path.stat().st_size < LARGEST
    with opened(path) as window:
        titles = window.locator("h2").all_inner_texts()
        assert {"Summary", "Retrieval", "Learning curves", "Map of the embedding", "Where the encoder looks", "Views",
                "Repeat it", "Settings"} <= set(titles)  # fmt: skip
        assert window.locator(".maps figure").count() == 8 and window.locator(".gallery figure img").count() >= 24
        window.locator("canvas").focus()
        window.keyboard.press("ArrowRight")
        window.keyboard.press("Enter")
        assert window.locator(".near img").count() == 7  # itself and six neighbours; the untrained start is not kept


def test_a_run_without_labels_has_a_page_without_scores() -> None:
    text = (plain_run() / "report.html").read_text(encoding="utf-8")
    assert "Map of the embedding" in text and "<h2" in text and ">Retrieval</h2>" not in text


def test_a_run_that_is_not_evaluated_has_a_page_without_a_map(tmp_path: Path) -> None:
    assert fgssl("pretrain", "--data", photos(), *SHORT, "--output", tmp_path / "run").code == 0
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert ">Learning curves</h2>" in text and ">Map of the embedding</h2>" not in text


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("a bug\nof two lines"), MemoryError()]
)
def test_a_report_that_fails_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(report, "save_page", refuse)
    outcome = fgssl("pretrain", "--data", photos(), *SHORT, "--output", tmp_path / "run")
    assert outcome.code == 0 and (tmp_path / "run" / "encoder.safetensors").is_file()
    assert not (tmp_path / "run" / "report.html").exists()
    told = [line for line in outcome.err.splitlines() if "report.html" in line]
    assert len(told) == 1 and told[0].startswith("warning: no report.html: ")
