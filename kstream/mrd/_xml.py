"""Reads XML from strangers: no DTD, no entities, bounded depth and size."""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..errors import ProtocolError

MAX_DEPTH = 64
MAX_ELEMENTS = 50_000

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """Replace the characters that XML 1.0 cannot carry (control characters, lone surrogates) by ``?``."""
    return _NOT_XML.sub("?", text)


def read_xml(xml: bytes, what: str) -> Element:
    """Parse `xml` into elements whose tags are spelled ``{namespace}name``.

    Expat is driven directly because ``xml.etree`` has no way to refuse a document type declaration, and with it
    external entities and entity expansion.

    Raises
    ------
    ProtocolError
        If `xml` is not well-formed, declares a DTD, or is nested deeper than ``MAX_DEPTH`` or has more elements
        than ``MAX_ELEMENTS``; `what` names the document in the message.
    """
    reader = _Reader(what)
    try:
        reader.parser.Parse(xml, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise ProtocolError(
            f"{what} is not XML: {reason}",
            where=f"line {error.lineno}, column {error.offset + 1}",
            likely="it was cut short, or something else was sent in its place",
        ) from error
    except (LookupError, ValueError) as error:
        raise ProtocolError(f"{what} has an encoding that cannot be read: {error}", hint="send UTF-8") from error
    return reader.builder.close()


class _Reader:
    """Feeds a tree builder from expat and refuses what a header never needs."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.builder = TreeBuilder()
        self.n_elements = 0
        self.depth = 0
        self.parser = expat.ParserCreate(namespace_separator="}")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse_dtd
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self.builder.data

    def _refuse(self, why: str) -> ProtocolError:
        return ProtocolError(f"{self.what} {why}", where=f"line {self.parser.CurrentLineNumber}")

    def _refuse_dtd(self, *_: Any) -> None:
        raise self._refuse("declares a DTD, which is refused")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self.n_elements += 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._refuse(f"is nested deeper than {MAX_DEPTH} elements")
        if self.n_elements > MAX_ELEMENTS:
            raise self._refuse(f"has more than {MAX_ELEMENTS} elements")
        self.builder.start(_qualified(tag), attributes)

    def _end(self, tag: str) -> None:
        self.depth -= 1
        self.builder.end(_qualified(tag))


def _qualified(tag: str) -> str:
    return "{" + tag if "}" in tag else tag
