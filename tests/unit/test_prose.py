"""The linter of prose: each habit is found where it stands, and code is left alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("prose_lint", ROOT / "docs" / "prose_lint.py")
assert _spec is not None
assert _spec.loader is not None
prose_lint = importlib.util.module_from_spec(_spec)
sys.modules["prose_lint"] = prose_lint
_spec.loader.exec_module(prose_lint)


@pytest.mark.parametrize(
    ("habit", "text"),
    [
        ("free relative", "It returns what is left."),
        ("whoever", "Whoever holds it may write."),
        ("nobody", "Nobody reads it."),
        ("archaism", "The file is written anew."),
    ],
)
def test_each_habit_is_found(habit: str, text: str) -> None:
    found = {one.name for one in prose_lint.HABITS if one.pattern.search(text)}
    assert found == {habit}


def test_plain_text_has_no_habit() -> None:
    text = "Return the path of the file. No more than 40 links are followed."
    assert not [one.name for one in prose_lint.HABITS if one.pattern.search(text)]


def test_docstrings_comments_log_lines_and_help_are_read_and_code_is_not(tmp_path: Path) -> None:
    source = (
        '"""First."""\n\nnobody = "whoever"  # a comment\n'
        'log.info(f"user endpoint {nobody} ended")\noption(help="a help text")\n'
    )
    written = tmp_path / "code.py"
    written.write_text(source)
    prose_lint.ROOT = tmp_path
    try:
        texts = [passage.text for passage in prose_lint.python_passages(written)]
    finally:
        prose_lint.ROOT = ROOT
    assert texts == ["First.", "user endpoint X ended", "a help text", "a comment"]


def test_a_long_sentence_is_named_with_its_place() -> None:
    passage = prose_lint.Passage("a.py", 3, " ".join(["word"] * 36) + ". Short one.")
    (line,) = prose_lint.long_sentences([passage])
    assert line.startswith("a.py:3: a sentence of 36 words")


def test_a_code_block_is_not_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```\nnobody whoever\n```\n\n| cell | other |\n")
    prose_lint.ROOT = tmp_path
    try:
        texts = [passage.text.strip() for passage in prose_lint.markdown_passages(page)]
    finally:
        prose_lint.ROOT = ROOT
    assert texts == ["Text.", "cell", "other"]
