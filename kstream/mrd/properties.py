"""Properties of a gadget, as Gadgetron's configuration files spell them."""

from __future__ import annotations

from ..errors import ProtocolError
from ._xml import read_xml


def properties_from_xml(text: str) -> dict[str, str]:
    """Read ``<configuration><property name="..." value="..."/> ...</configuration>``; empty if there is no element.

    Raises
    ------
    ProtocolError : the text is not XML, or a property has no name, no value, or occurs twice.
    """
    bare = text.strip().rstrip("\0")
    if not bare or (bare.startswith("<?xml") and bare.endswith("?>") and bare.count("<") == 1):
        return {}
    found: dict[str, str] = {}
    for element in read_xml(bare.encode(), "the configuration of the gadget").iter():
        if element.tag.rpartition("}")[2] != "property":
            continue
        name, value = element.get("name", ""), element.get("value")
        if not name or value is None or name in found:
            raise ProtocolError(
                f"the property {name!r} has no name or no value, or occurs twice",
                where="<configuration> of the gadget",
                hint='<property name="preset" value="breast-dce"/>',
            )
        found[name] = value
    return found
