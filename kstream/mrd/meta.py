"""Image attributes <-> the ISMRMRD meta XML that travels with an image."""

from __future__ import annotations

from xml.sax.saxutils import escape

from ..errors import ProtocolError
from ._xml import read_xml, xml_text
from .messages import Meta


def meta_to_xml(meta: Meta) -> bytes:
    """Write attributes as ISMRMRD meta XML.

    The bytes are pure ASCII: other characters become numeric references, because ``ismrmrd.File`` decodes attributes
    as strict ASCII. No attributes give no bytes. A list of one value is read back as that value.
    """
    if not meta:
        return b""
    entries = []
    for name, value in meta.items():
        values = [value] if isinstance(value, str) else value
        inner = "".join(f"<value>{_escaped(v)}</value>" for v in values)
        entries.append(f"<meta><name>{_escaped(name)}</name>{inner}</meta>")
    document = '<?xml version="1.0" encoding="UTF-8"?>\n<ismrmrdMeta>' + "".join(entries) + "</ismrmrdMeta>"
    return document.encode("ascii", "xmlcharrefreplace")


def meta_from_xml(xml: bytes) -> Meta:
    """Read ISMRMRD meta XML; values of repeated names are gathered in a list, as ``ismrmrd.Meta`` does.

    Raises
    ------
    ProtocolError
        If it is not XML, declares a DTD, or is not an ``ismrmrdMeta`` document.
    """
    xml = xml.rstrip(b"\0")
    if not xml:
        return {}
    root = read_xml(xml, "the image meta")
    if root.tag.rpartition("}")[2] != "ismrmrdMeta":
        raise ProtocolError(f"the image meta is a {root.tag!r} document, not ismrmrdMeta")
    gathered: dict[str, list[str]] = {}
    for entry in root:
        name = next((child.text or "" for child in entry if child.tag == "name"), None)
        if name is None:
            raise ProtocolError("an attribute of the image meta has no name")
        gathered.setdefault(name, []).extend(child.text or "" for child in entry if child.tag == "value")
    return {name: values[0] if len(values) == 1 else values for name, values in gathered.items()}


def _escaped(text: str) -> str:
    return escape(xml_text(text), {"\r": "&#13;"})
