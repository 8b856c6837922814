"""A rendered template as YAML text: the template's own layout, with values that are read back as they are.

A start never makes this text, since values never meet its parser (yaml_document.py). `mep render` prints it. The text
is read back and compared with the document. If they differ, the document is written anew, without the layout.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import yaml

from user_endpoint.render.origins import Origin, line_origins
from user_endpoint.render.pieces import Fragment, Text
from user_endpoint.render.yaml_document import MarkedText, ScalarSpan, YamlDocument, YamlInvalid, document_from

_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")

_BLOCK_HEADER = re.compile(r"^(.*[:-] *[|>][1-9]?)( *(?: #.*)?)$")


@dataclass(frozen=True, slots=True)
class RenderedLine:
    """One line, and where it stands in a template if that is known."""

    text: str
    origin: Origin | None = None


def yaml_lines(fragment: Fragment, source: MarkedText, document: YamlDocument) -> list[RenderedLine]:
    """Return `document`, which `source` of `fragment` gives, as lines of YAML."""
    lines = _laid_out(_parts(source, document), line_origins(fragment))
    if not _reads_as(lines, document.data):
        lines = _with_last_block_stripped(lines)
    if not _reads_as(lines, document.data):
        text = yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True)
        return [RenderedLine(line) for line in text.splitlines()]
    return lines


def _reads_as(lines: list[RenderedLine], data: Any) -> bool:
    text = "".join(f"{line.text}\n" for line in lines)
    try:
        return bool(document_from(Fragment((Text(text),))).data == data)
    except YamlInvalid:
        return False


def _with_last_block_stripped(lines: list[RenderedLine]) -> list[RenderedLine]:
    """Return the lines with `|-` for the last `|`: Jinja drops the template's last newline, and printing adds one."""
    for number, line in reversed(list(enumerate(lines))):
        if header := _BLOCK_HEADER.search(line.text):
            return [*lines[:number], replace(line, text=f"{header[1]}-{header[2]}"), *lines[number + 1 :]]
    return lines


def _parts(source: MarkedText, document: YamlDocument) -> list[tuple[str, int]]:
    """Return the text in parts; with each, how many lines of the marked text it stands for."""
    parts: list[tuple[str, int]] = []
    position = 0
    for _, span in sorted(document.spans.items()):
        for shown, end in ((None, span.start), (_shown(source, span), span.end)):
            original = source.text[position:end]
            parts.append((_escaped(source, original) if shown is None else shown, original.count("\n")))
            position = end
    rest = source.text[position:]
    return [*parts, (_escaped(source, rest), rest.count("\n"))]


def _laid_out(parts: list[tuple[str, int]], origins: list[Origin | None]) -> list[RenderedLine]:
    texts, numbers, number = [""], [0], 0
    for text, height in parts:
        first, *others = text.split("\n")
        texts[-1] += first
        texts += others
        if len(others) == height:
            numbers += range(number + 1, number + height + 1)
        else:  # a block that became one line
            numbers += [number] * (len(others) - 1) + [number + height] * bool(others)
        number += height
    lines = [RenderedLine(text, origins[number]) for text, number in zip(texts, numbers, strict=True)]
    return lines if lines[-1].text else lines[:-1]


def _shown(source: MarkedText, span: ScalarSpan) -> str:
    """Return a scalar with its values: a block scalar as it is laid out if each value fits into a line."""
    original = source.text[span.start : span.end]
    if not span.block:
        return flow(span.data)
    texts = [source.values[int(number)].text for number in source.placeholder.findall(original)]
    if any(_UNPRINTABLE.search(text) for text in texts):
        return flow(span.data) + "\n"
    return source.placeholder.sub(lambda match: source.values[int(match[1])].text, original)


def _escaped(source: MarkedText, text: str) -> str:
    """Return text in which values can stand in comments only."""
    return source.placeholder.sub(lambda match: _quoted(source.values[int(match[1])].text)[1:-1], text)


def flow(data: Any) -> str:
    """Return plain data as YAML in one line."""
    if isinstance(data, str):
        return _quoted(data)
    if isinstance(data, list):
        return f"[{', '.join(map(flow, data))}]"
    if isinstance(data, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(value)}" for key, value in data.items()) + "}"
    return str(yaml.safe_dump(data)).partition("\n")[0]


def _quoted(text: str) -> str:
    return _UNPRINTABLE.sub(lambda match: f"\\U{ord(match[0]):08x}", json.dumps(text, ensure_ascii=False))
