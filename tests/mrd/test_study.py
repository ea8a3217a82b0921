from __future__ import annotations

import pytest

from kstream.errors import ProtocolError
from kstream.mrd.study import study_fields
from tests.oblique import header_with_patient, oblique


def test_texts_of_subject_study_and_measurement_are_read() -> None:
    fields = study_fields(header_with_patient(oblique()) + b"\0\0")
    assert fields == {
        "patientName": "Doe^Jörg",
        "patientID": "P-4711",
        "patientBirthdate": "1957-03-09",
        "patientGender": "M",
        "studyDate": "2031-10-24",
        "studyTime": "13:05:59.25",
        "studyID": "77",
        "studyInstanceUID": "1.2.840.99.5",
        "patientPosition": "FFP",
        "protocolName": "oblique",
    }


def test_header_with_a_dtd_is_refused() -> None:
    with pytest.raises(ProtocolError):
        study_fields(b'<!DOCTYPE x [<!ENTITY e "boom">]><ismrmrdHeader/>')
