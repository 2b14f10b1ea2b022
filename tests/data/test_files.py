"""JSON Lines as editors leave them: line ends, blank lines, and the numbers of lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.files import load_one

from minialign.data.records import load_demonstrations


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(
    tmp_path: Path, ending: str, mark: bytes, last: bool
) -> None:
    lines = [json.dumps({"prompt": f"p{i}", "completion": f"c{i}\nd"}) for i in range(3)]
    text = ending.join(lines) + (ending if last else "")
    (tmp_path / "demos.jsonl").write_bytes(mark + text.encode())
    found = load_demonstrations(tmp_path / "demos.jsonl")
    assert [(d.prompt, d.completion) for d in found] == [(f"p{i}", f"c{i}\nd") for i in range(3)]


def test_a_demonstration_knows_its_line_also_behind_blank_ones(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "p", "completion": "c"})
    (tmp_path / "demos.jsonl").write_text(f"\n{line}\n\n\n{line}\n")
    sources = [d.source for d in load_demonstrations(tmp_path / "demos.jsonl")]
    assert sources == [f"{tmp_path}/demos.jsonl, line {number}" for number in (2, 5)]


def test_separators_within_a_text_do_not_end_its_line(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three\x0cfour"
    assert load_one(tmp_path, {"prompt": "p", "completion": text}).completion == text
