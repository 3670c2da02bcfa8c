"""What lies below a directory, by names that are text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.config import ConfigError
from pipeline.data.filesystems import files_below


def test_a_name_that_is_no_utf8_is_refused_by_itself_and_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    assert files_below(str(tmp_path)) == [f"{tmp_path}/a.png"]
    with open(os.fsencode(tmp_path) + b"/b\xfcld.png", "wb"):
        pass
    with pytest.raises(ConfigError, match=r"b.xfcld.png'\); rename it"):
        files_below(str(tmp_path))
