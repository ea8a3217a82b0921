"""Who was measured and in which study, as the MRD header says it; read only when somebody asks for it."""

from __future__ import annotations

from ._xml import read_xml

_SECTIONS = {"subjectInformation", "studyInformation", "measurementInformation"}


def study_fields(xml: bytes) -> dict[str, str]:
    """Texts of the header's sections on subject, study and measurement by element name, such as ``patientName``.

    Only elements that hold one text and are not empty; the first of a name counts.

    Raises
    ------
    ProtocolError
        If `xml` is not XML, or declares a DTD.
    """
    fields: dict[str, str] = {}
    for section in read_xml(xml.rstrip(b"\0"), "the header"):
        if _local(section.tag) in _SECTIONS:
            for element in section:
                text = (element.text or "").strip()
                if text and not len(element):
                    fields.setdefault(_local(element.tag), text)
    return fields


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
