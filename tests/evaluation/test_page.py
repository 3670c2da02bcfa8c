"""The page of figures: what stands on it, and that nothing of it acts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.media import encode_png, encode_wav
from pipeline.evaluation.page import Figure, MediaItem, Section, Table, curves, write_page
from pipeline.records import Audio, MediaKind, Medium

HOSTILE = "</style><script>document.title='owned'</script>"
PNG = encode_png(np.zeros((4, 4, 3), np.uint8))
WAV = encode_wav(Audio(np.zeros(160, np.float32), 16_000))


def _written(directory: Path, *sections: Section) -> str:
    path = directory / "new" / "report.html"
    write_page(path, title="Retrieval", sections=sections)
    return path.read_text(encoding="utf-8")


def test_words_tables_charts_and_media_stand_on_the_page(tmp_path: Path) -> None:
    chart = curves(
        "Recall", {"speech": [(1, 0.2), (2, 0.9)], "text": [(1, 0.1), (2, 0.8)]}, unit="share", along="epoch"
    )
    media = (MediaItem("a ring", Medium(MediaKind.IMAGE, PNG)), MediaItem("a word", Medium(MediaKind.AUDIO, WAV)))
    page = _written(
        tmp_path,
        Section(
            "Figures", "How it went.", Table(("kind", "recall"), (("text", "0.91"),)), (chart, Figure("still", PNG))
        ),
        Section("Answers", media=media),
    )
    for part in ("How it went.", "0.91", "<svg", ">epoch<", '<li class="c1">text</li>', 'alt="still"', 'alt="a ring"'):
        assert part in page
    assert page.count("data:image/png;base64,") == 2
    assert page.count("data:audio/wav;base64,") == 1
    assert 'href="#part2">Answers' in page


def test_nothing_that_a_row_says_acts(tmp_path: Path) -> None:
    table = Table((HOSTILE, "x"), ((HOSTILE, HOSTILE),))
    chart = curves(HOSTILE, {HOSTILE: [(0, 1)]}, unit=HOSTILE, along=HOSTILE)
    hidden = Medium(MediaKind.IMAGE, b"<svg onload='alert(1)'/>")
    page = _written(tmp_path, Section(HOSTILE, HOSTILE, table, (chart,), (MediaItem(HOSTILE, hidden),)))
    assert "<script" not in page
    assert "onload" not in page
    assert "default-src 'none'" in page
    assert "a format that browsers do not play" in page


def test_a_row_of_another_length_and_a_figure_of_another_format_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a row has 1 cells, the header 2"):
        _written(tmp_path, Section("Figures", table=Table(("a", "b"), (("1",),))))
    with pytest.raises(ValueError, match="'still': neither an <svg> element nor a PNG"):
        _written(tmp_path, Section("Figures", figures=(Figure("still", b"\xff\xd8\xff\xe0"),)))
