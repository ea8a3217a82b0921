"""Reads XML from strangers: no DTD, no entities, bounded depth and size."""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..errors import ProtocolError

MAX_DEPTH = 64
MAX_ELEMENTS = 50_000
"""Elements, attributes and namespaces together."""
MAX_MARKUP_BYTES = 2**20
"""Of one tag with its attributes, or one comment: a million attributes of one element take more than a second."""

_STEP_BYTES = 2**18

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
        If `xml` is not well-formed, declares a DTD, is nested deeper than ``MAX_DEPTH``, has more elements and
        attributes than ``MAX_ELEMENTS`` or a tag of more than ``MAX_MARKUP_BYTES``; `what` names the document in the
        message.
    """
    reader = _Reader(what)
    try:
        reader.parse(xml)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise ProtocolError(
            f"{what} is not XML: {reason}",
            where=f"line {error.lineno}, column {error.offset + 1}",
            likely="it was cut short, or something else was sent in its place",
        ) from error
    except (LookupError, ValueError) as error:
        what = f"{what} has an encoding that cannot be read: {error}"
        raise ProtocolError(what, where="XML declaration", hint="send UTF-8") from error
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
        self.parser.StartNamespaceDeclHandler = self._namespace
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self.builder.data

    def parse(self, xml: bytes) -> None:
        """Read in steps, and look after each how much of what was read expat cannot make sense of yet."""
        for end in range(_STEP_BYTES, max(len(xml), 1) + _STEP_BYTES, _STEP_BYTES):
            self.parser.Parse(xml[end - _STEP_BYTES : end], end >= len(xml))
            if end < len(xml) and end - self.parser.CurrentByteIndex > MAX_MARKUP_BYTES:
                raise self._refuse(f"has a tag or a comment of more than {MAX_MARKUP_BYTES} bytes")

    def _refuse(self, why: str) -> ProtocolError:
        return ProtocolError(f"{self.what} {why}", where=f"line {self.parser.CurrentLineNumber}")

    def _refuse_dtd(self, *_: Any) -> None:
        raise self._refuse("declares a DTD, which is refused")

    def _namespace(self, *_: Any) -> None:
        self._count(1)

    def _count(self, n: int) -> None:
        self.n_elements += n
        if self.n_elements > MAX_ELEMENTS:
            raise self._refuse(f"has more than {MAX_ELEMENTS} elements and attributes")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count(1 + len(attributes))
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._refuse(f"is nested deeper than {MAX_DEPTH} elements")
        self.builder.start(_qualified(tag), attributes)

    def _end(self, tag: str) -> None:
        self.depth -= 1
        self.builder.end(_qualified(tag))


def _qualified(tag: str) -> str:
    return "{" + tag if "}" in tag else tag
