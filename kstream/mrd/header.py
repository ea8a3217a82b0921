"""The ISMRMRD XML header <-> ``Scan``.

Reading takes only the elements that kstream uses and tolerates everything else: real writers leave out elements that
the schema requires (KomaMRI has no ``patientPosition``) or add their own, and the schema classes of ``ismrmrd`` refuse
both. Writing goes through those classes, so that what leaves is valid against the schema.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar
from xml.etree.ElementTree import Element

import numpy as np

from ..errors import ProtocolError, ScanError
from ..types import EncodingLimit, Scan, Vector
from ._xml import read_xml, xml_text

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
TRAJECTORIES = ("cartesian", "epi", "radial", "goldenangle", "spiral", "other")

_NS = f"{{{NAMESPACE}}}"
_MAX_COUNT = 65535  # counters and matrix sizes are uint16 on the wire
_MAX_NAME_LENGTH = 256

# The header spells two counters unlike the acquisitions do.
_LIMIT_NAMES = {f"kspace_encoding_step_{n}": f"kspace_encode_step_{n}" for n in (0, 1, 2)}
_LIMIT_TAGS = {counter: tag for tag, counter in _LIMIT_NAMES.items()}

_KNOWN = {
    "ismrmrdHeader": {
        "version",
        "subjectInformation",
        "studyInformation",
        "measurementInformation",
        "acquisitionSystemInformation",
        "experimentalConditions",
        "encoding",
        "sequenceParameters",
        "userParameters",
        "waveformInformation",
    },
    "encoding": {
        "encodedSpace",
        "reconSpace",
        "encodingLimits",
        "trajectory",
        "trajectoryDescription",
        "parallelImaging",
        "echoTrainLength",
    },
    "userParameters": {"userParameterLong", "userParameterDouble", "userParameterString", "userParameterBase64"},
}

_log = logging.getLogger(__name__)

T = TypeVar("T")


def parse_header(xml: bytes) -> Scan:
    """Read an ISMRMRD XML header.

    Trailing NULs are stripped, unknown elements are logged and skipped, and of several encodings the first is taken.
    Elements that kstream can do without (encoding limits, TR, receiver channels ...) may be missing.

    Raises
    ------
    ProtocolError
        If `xml` is not XML, declares a DTD, or is not an ISMRMRD header.
    ScanError
        If the encoding is missing or impossible; names the element.
    """
    xml = xml.rstrip(b"\0")
    if not xml.strip():
        raise ProtocolError("the header is empty", likely="the recording has no xml, or it was not sent")
    root = read_xml(xml, "the header")
    if root.tag != f"{_NS}ismrmrdHeader":
        raise ProtocolError(
            f"the header is a {root.tag!r} document, expected '{_NS}ismrmrdHeader'",
            likely="the namespace is missing, or another document was sent as header",
        )
    _log_unknown(root)
    encodings = root.findall(f"{_NS}encoding")
    if not encodings:
        raise ScanError("the header has no encoding", where="ismrmrdHeader/encoding", hint="add one encoding element")
    if len(encodings) > 1:
        _log.warning("the header has %d encodings; the first is used", len(encodings))
    encoding = encodings[0]
    return Scan(
        encoded_matrix=_matrix(encoding, "encodedSpace"),
        recon_matrix=_matrix(encoding, "reconSpace"),
        encoded_fov_mm=_field_of_view_mm(encoding, "encodedSpace"),
        recon_fov_mm=_field_of_view_mm(encoding, "reconSpace"),
        trajectory=_trajectory(encoding),
        limits=_limits(encoding),
        n_coils=_optional(root, "acquisitionSystemInformation/receiverChannels", int, 0),
        h1_frequency_hz=_optional(root, "experimentalConditions/H1resonanceFrequency_Hz", int, 0),
        field_strength_t=_optional(root, "acquisitionSystemInformation/systemFieldStrength_T", float, 0.0),
        tr_ms=_optional(root, "sequenceParameters/TR", float, 0.0),
        te_ms=_optional(root, "sequenceParameters/TE", float, 0.0),
        flip_angle_deg=_optional(root, "sequenceParameters/flipAngle_deg", float, 0.0),
        protocol_name=_printable(_optional(root, "measurementInformation/protocolName", str, "")),
        user_parameters=_user_parameters(root),
        xml=xml,
    )


_PRIVATE = {
    "subjectInformation",
    "accessionNumber",
    "referringPhysicianName",
    "studyDescription",
    "studyID",
    "studyDate",
    "studyTime",
    "studyInstanceUID",
    "seriesDate",
    "seriesTime",
    "seriesInstanceUIDRoot",
    "frameOfReferenceUID",
    "referencedImageSequence",
}


def patient_words(xml: bytes) -> set[str]:
    """Every text of a header that tells who the patient is, whole and in its parts: what no log may show.

    Empty for what is not a header.
    """
    try:
        root = read_xml(xml.rstrip(b"\0"), "the header")
    except ProtocolError:
        return set()
    words: set[str] = set()
    for element in root.iter():
        if element.tag.rpartition("}")[2] in _PRIVATE:
            texts = [(inner.text or "").strip() for inner in element.iter()]
            words.update(part for text in texts for part in (text, *text.replace("^", " ").split()))
    return {word for word in words if len(word) > 1}


def build_header(scan: Scan, *, patient_free: bool = True, patient_position: str = "HFS") -> bytes:
    """Write a header that is valid against the ISMRMRD schema.

    Parameters
    ----------
    scan : what to write; a user parameter becomes long, double or string by its Python type.
    patient_free : leave out subject and study; if False they are copied from ``scan.xml``.
    patient_position : required by the schema beside the protocol name.

    Raises
    ------
    ScanError
        If the trajectory or a counter has no name in the schema.
    """
    xsd = _schema()
    persons = {} if patient_free else _persons(scan.xml, xsd)
    header = xsd.ismrmrdHeader(
        **persons,
        measurementInformation=xsd.measurementInformationType(
            patientPosition=xsd.patientPositionType(patient_position), protocolName=xml_text(scan.protocol_name) or None
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemFieldStrength_T=scan.field_strength_t or None, receiverChannels=scan.n_coils or None
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=int(scan.h1_frequency_hz)),
        encoding=[_encoding(scan, xsd)],
        sequenceParameters=xsd.sequenceParametersType(
            TR=[float(scan.tr_ms)] if scan.tr_ms else [],
            TE=[float(scan.te_ms)] if scan.te_ms else [],
            flipAngle_deg=[float(scan.flip_angle_deg)] if scan.flip_angle_deg else [],
        ),
        userParameters=_user_parameters_type(scan.user_parameters, xsd),
    )
    text: str = header.toXML(encoding="utf-8")
    return text.encode("utf-8")


# ---- reading ---------------------------------------------------------------------------------------------------------


def _path(path: str) -> str:
    return "/".join(_NS + name for name in path.split("/"))


def _text(element: Element, path: str) -> str | None:
    """Text of the first element at `path`, stripped; None if there is no such element."""
    found = element.find(_path(path))
    return None if found is None else (found.text or "").strip()


def _convert(text: str, kind: Callable[[str], T], path: str) -> T:
    try:
        return kind(text)
    except ValueError as error:
        raise ScanError(f"the header has {text[:80]!r} where a number belongs", where=path) from error


def _optional(element: Element, path: str, kind: Callable[[str], T], default: T) -> T:
    text = _text(element, path)
    return default if text is None else _convert(text, kind, path)


def _required(element: Element, path: str, kind: Callable[[str], T]) -> T:
    text = _text(element, path)
    if text is None:
        raise ScanError("the header lacks an element that reconstruction needs", where=f"encoding/{path}")
    return _convert(text, kind, f"encoding/{path}")


def _matrix(encoding: Element, space: str) -> tuple[int, int, int]:
    x, y, z = (_required(encoding, f"{space}/matrixSize/{axis}", int) for axis in "xyz")
    if not all(1 <= n <= _MAX_COUNT for n in (x, y, z)):
        raise ScanError(f"the matrix is {x} x {y} x {z}, expected 1 to {_MAX_COUNT}", where=f"encoding/{space}")
    return x, y, z


def _field_of_view_mm(encoding: Element, space: str) -> Vector:
    x, y, z = (_required(encoding, f"{space}/fieldOfView_mm/{axis}", float) for axis in "xyz")
    if not all(math.isfinite(extent) and extent > 0 for extent in (x, y, z)):
        raise ScanError(f"the field of view is {x} x {y} x {z} mm, expected more than 0", where=f"encoding/{space}")
    return x, y, z


def _trajectory(encoding: Element) -> str:
    trajectory = _required(encoding, "trajectory", str)
    if trajectory not in TRAJECTORIES:
        raise ScanError(
            f"the trajectory is {trajectory[:80]!r}, expected one of {', '.join(TRAJECTORIES)}",
            where="encoding/trajectory",
        )
    return trajectory


def _limits(encoding: Element) -> dict[str, EncodingLimit]:
    parent = encoding.find(f"{_NS}encodingLimits")
    limits = {}
    for element in () if parent is None else parent:
        tag = element.tag.removeprefix(_NS)
        where = f"encoding/encodingLimits/{tag}"
        minimum, maximum, center = (_optional(element, name, int, 0) for name in ("minimum", "maximum", "center"))
        if not 0 <= minimum <= maximum <= _MAX_COUNT:
            raise ScanError(f"the limits run from {minimum} to {maximum}, expected 0 to {_MAX_COUNT}", where=where)
        if not 0 <= center <= _MAX_COUNT:
            raise ScanError(f"the centre is {center}, expected 0 to {_MAX_COUNT}", where=where)
        limits[_LIMIT_NAMES.get(tag, tag)] = EncodingLimit(minimum, maximum, center)
    return limits


def _user_parameters(root: Element) -> dict[str, int | float | str]:
    parent = root.find(f"{_NS}userParameters")
    kinds: Mapping[str, Callable[[str], int | float | str]] = {
        "userParameterLong": int,
        "userParameterDouble": float,
        "userParameterString": str,
    }
    parameters: dict[str, int | float | str] = {}
    for element in () if parent is None else parent:
        kind = kinds.get(element.tag.removeprefix(_NS))
        name, value = _text(element, "name"), _text(element, "value")
        if kind is None or not name or value is None:
            continue
        try:
            parameters[name] = kind(value)
        except ValueError:
            _log.warning("user parameter %r is %r, not a number; kept as text", name[:80], value[:80])
            parameters[name] = value
    return parameters


def _printable(name: str) -> str:
    """Make a name from a stranger safe to log: no control characters, bounded length."""
    return "".join(c if c.isprintable() else " " for c in name[:_MAX_NAME_LENGTH]).strip()


def _log_unknown(root: Element) -> None:
    parents = [root, *root.findall(f"{_NS}encoding"), *root.findall(f"{_NS}userParameters")]
    unknown = {
        f"{parent.tag.removeprefix(_NS)}/{child.tag.removeprefix(_NS)}"
        for parent in parents
        for child in parent
        if child.tag.removeprefix(_NS) not in _KNOWN[parent.tag.removeprefix(_NS)]
    }
    if unknown:
        _log.warning("the header has unknown elements, which are skipped: %s", _printable(", ".join(sorted(unknown))))


# ---- writing ---------------------------------------------------------------------------------------------------------


def _schema() -> ModuleType:
    """Import the schema classes when they are needed: ``ismrmrd`` costs 140 ms and resets the warning filters."""
    with warnings.catch_warnings():
        import ismrmrd.xsd
    module: ModuleType = ismrmrd.xsd
    return module


def _persons(xml: bytes, xsd: ModuleType) -> dict[str, Any]:
    if not xml:
        return {}
    read_xml(xml, "the header")
    try:
        original = xsd.CreateFromDocument(xml)
    except (TypeError, ValueError) as error:
        raise ScanError(
            f"subject and study cannot be copied from a header that breaks the schema: {error}",
            hint="write the header without them",
        ) from error
    return {"subjectInformation": original.subjectInformation, "studyInformation": original.studyInformation}


def _encoding(scan: Scan, xsd: ModuleType) -> Any:
    if scan.trajectory not in TRAJECTORIES:
        raise ScanError(f"the trajectory is {scan.trajectory!r}, expected one of {', '.join(TRAJECTORIES)}")
    return xsd.encodingType(
        encodedSpace=_space(scan.encoded_matrix, scan.encoded_fov_mm, xsd),
        reconSpace=_space(scan.recon_matrix, scan.recon_fov_mm, xsd),
        encodingLimits=_limits_type(scan.limits, xsd),
        trajectory=xsd.trajectoryType(scan.trajectory),
    )


def _space(matrix: tuple[int, int, int], fov_mm: Vector, xsd: ModuleType) -> Any:
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(**dict(zip("xyz", map(int, matrix), strict=True))),
        fieldOfView_mm=xsd.fieldOfViewMm(**dict(zip("xyz", map(float, fov_mm), strict=True))),
    )


def _limits_type(limits: Mapping[str, EncodingLimit], xsd: ModuleType) -> Any:
    fields = {
        _LIMIT_TAGS.get(counter, counter): xsd.limitType(
            minimum=int(limit.minimum), maximum=int(limit.maximum), center=int(limit.center)
        )
        for counter, limit in limits.items()
    }
    unknown = fields.keys() - xsd.encodingLimitsType.__dataclass_fields__.keys()
    if unknown:
        raise ScanError(f"the schema has no encoding limits for {', '.join(sorted(unknown))}")
    return xsd.encodingLimitsType(**fields)


def _user_parameters_type(parameters: Mapping[str, int | float | str], xsd: ModuleType) -> Any:
    longs, doubles, strings = [], [], []
    for key, value in parameters.items():
        name = xml_text(key)
        if isinstance(value, str):
            strings.append(xsd.userParameterStringType(name=name, value=xml_text(value)))
        elif isinstance(value, float | np.floating):
            doubles.append(xsd.userParameterDoubleType(name=name, value=float(value)))
        else:
            longs.append(xsd.userParameterLongType(name=name, value=int(value)))
    return xsd.userParametersType(userParameterLong=longs, userParameterDouble=doubles, userParameterString=strings)
