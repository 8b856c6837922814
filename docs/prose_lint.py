"""Checks the project's prose: docstrings, comments, log lines, help texts and documentation.

Run by `make lint`. Habits that make English hard to read are counted per 10,000 words and held below a limit. A
sentence of more than 35 words is an error wherever it stands. `--counts` prints the counts alone; `--where HABIT`
lists the places.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_WORDS = 35
PER = 10_000
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical", "say", "line"}
TEXT_ARGUMENTS = {"help", "short_help", "epilog", "description"}


@dataclass(frozen=True)
class Habit:
    """One habit: the pattern that shows it and the most that 10,000 words may hold."""

    name: str
    pattern: re.Pattern[str]
    limit: float


HABITS = (
    Habit("free relative", re.compile(r"\bwhat (?:is|was|has|had|they|ran|comes|waits)\b", re.I), 3),
    Habit("whoever", re.compile(r"\b(?:whoever|whose|whom)\b", re.I), 2),
    Habit("nobody", re.compile(r"\b(?:nobody|somebody|everybody)\b", re.I), 2),
    Habit("archaism", re.compile(r"\b(?:by then|for good|no more|anew|meanwhile)\b(?! than)", re.I), 2),
)


@dataclass(frozen=True)
class Passage:
    """A run of prose and the place where it begins."""

    file: str
    line: int
    text: str


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def _literal(node: ast.expr) -> str:
    """Return the text of a string literal or f-string; a value in braces counts as one word."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return ""


def _strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield docstrings, strings that stand alone, log lines and help texts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in LOG_METHODS:
                yield from ((argument.lineno, _literal(argument)) for argument in node.args)
            for keyword in node.keywords:
                if keyword.arg in TEXT_ARGUMENTS:
                    yield keyword.value.lineno, _literal(keyword.value)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield comments; consecutive lines of comment are one passage."""
    start, lines, last = 0, list[str](), -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.string.startswith(("#!", "# type:", "# noqa")):
            continue
        text, whole_line = token.string.lstrip("# "), not token.line[: token.start[1]].strip()
        if lines and whole_line and token.start[0] == last + 1:
            lines.append(text)
        else:
            if lines:
                yield start, "\n".join(lines)
            start, lines = token.start[0], [text]
        last = token.start[0]
    if lines:
        yield start, "\n".join(lines)


def python_passages(path: Path) -> Iterator[Passage]:
    """Yield the prose of one Python file."""
    source = path.read_text()
    name = str(path.relative_to(ROOT))
    for line, text in [*_strings(ast.parse(source)), *_comments(source)]:
        if text.strip():
            yield Passage(name, line, text)


def markdown_passages(path: Path) -> Iterator[Passage]:
    """Yield the prose of one Markdown file: paragraphs, list items and table cells; code blocks are left out."""
    name, fenced, start, lines = str(path.relative_to(ROOT)), False, 0, list[str]()
    for number, line in enumerate([*path.read_text().splitlines(), ""], 1):
        fence = line.lstrip().startswith("```")
        breaks = (
            fence or fenced or not line.strip() or line.startswith("    ") or re.match(r"\s*(?:[-*#|>]|\d+\.)", line)
        )
        if lines and breaks:
            yield Passage(name, start, "\n".join(lines))
            lines = []
        fenced ^= fence
        if fence or fenced or line.startswith("    "):
            continue
        if line.startswith("|"):
            yield from (Passage(name, number, cell) for cell in line.strip("|").split("|") if cell.strip())
        elif line.strip():
            start = start if lines else number
            lines.append(line)


def _plain(text: str) -> str:
    text = re.sub(r"`+[^`]*`+", "X", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"https?://\S+", "X", text)


def words_of(text: str) -> list[str]:
    """Return the words of a passage."""
    return re.findall(r"[A-Za-z0-9_'./-]*[A-Za-z0-9][A-Za-z0-9_'/-]*", text)


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of a passage. An empty line, a list item and a table row end one as well."""
    for block in re.split(r"\n\s*\n|\n\s*(?:[-*|]|\d+\.)\s+|\n(?=\s*[A-Z]\w+:\s)", text):
        yield from re.split(r"(?<=[.!?])[\"')]?\s+|:\n", block)


def long_sentences(passages: list[Passage]) -> list[str]:
    """Return one line for each sentence of more than MAX_WORDS words."""
    return [
        f"{passage.file}:{passage.line}: a sentence of {len(words)} words: {' '.join(words[:8])} ..."
        for passage in passages
        for sentence in sentences_of(_plain(passage.text))
        if len(words := words_of(sentence)) > MAX_WORDS
    ]


def all_passages() -> list[Passage]:
    """Return the prose of the whole project."""
    python = [passage for path in _tracked("*.py") for passage in python_passages(path)]
    return python + [passage for path in _tracked("*.md") for passage in markdown_passages(path)]


def main() -> int:
    """Print what is over a limit; return 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", action="store_true", help="print the counts and succeed")
    parser.add_argument("--where", choices=[habit.name for habit in HABITS], help="list the places of one habit")
    options = parser.parse_args()
    passages = all_passages()
    total = sum(len(words_of(_plain(passage.text))) for passage in passages)
    problems = long_sentences(passages)
    if options.where:
        chosen = next(habit for habit in HABITS if habit.name == options.where)
        for passage in passages:
            for found in chosen.pattern.finditer(_plain(passage.text)):
                print(f"{passage.file}:{passage.line}: {found.group(0)}")
        return 0
    for habit in HABITS:
        count = sum(len(habit.pattern.findall(_plain(passage.text))) for passage in passages)
        rate = count * PER / total
        if options.counts:
            print(f"{habit.name:15} {count:5}  {rate:5.1f} per 10,000 words (limit {habit.limit:g})")
        elif rate > habit.limit:
            problems.append(
                f"{habit.name}: {rate:.1f} per 10,000 words, limit {habit.limit:g} (--where {habit.name!r})"
            )
    if options.counts:
        print(f"long sentences  {len(problems):5}  of {total} words in all")
        return 0
    print(*problems, sep="\n", end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
