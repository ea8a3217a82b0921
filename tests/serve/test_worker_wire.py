from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kstream.errors import ModelError, PeerError, ProtocolError, ScanError
from kstream.segment import ModelInfo
from kstream.serve.worker_wire import (
    array_fields,
    decode_head,
    encode_head,
    error_fields,
    info_fields,
    read_array,
    read_error,
    read_info,
)
from kstream.types import LabelTable

INFO = ModelInfo("toy", LabelTable(("background", "lesion"), ((0, 0, 0), (255, 64, 64))), 4, 3, "abc")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)
HEADS = st.dictionaries(st.sampled_from(["kstream", "kind", "id", "dtype", "shape", "info"]), JSON)


def test_arrays_descriptions_and_errors_come_back_as_they_went() -> None:
    volume = np.random.default_rng(0).standard_normal((3, 5, 7, 2)).astype(np.float32).view(np.complex64)[..., 0]
    head = decode_head(encode_head("segment", 3, **array_fields(volume)))
    np.testing.assert_array_equal(read_array(head, memoryview(volume.tobytes()), "complex64"), volume)
    assert read_info(json.loads(json.dumps(info_fields(INFO)))) == INFO
    error = ScanError("what", where="where", likely="likely", hint="hint", code="word")
    told = read_error(decode_head(encode_head("error", 3, **error_fields(error))))
    assert type(told) is ScanError
    assert (str(told), told.code) == (str(error), "word")
    assert type(read_error(error_fields(PeerError("x")))) is PeerError


@pytest.mark.parametrize("name", ["Exception", "SystemExit", "nonsense", 3, None])
def test_an_error_of_a_class_that_is_not_ours_is_a_model_error(name: object) -> None:
    error = read_error({"type": name, "what": "x", "code": "not one word"})
    assert (type(error), error.code) == (ModelError, "model")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_a_protocol_error(data: bytes) -> None:
    try:
        head = decode_head(data)
    except ProtocolError:
        return
    assert head["kstream"] == 1


@given(HEADS, JSON, st.binary(max_size=99))
def test_any_head_is_read_or_a_protocol_error(head: dict[str, object], info: dict[str, object], data: bytes) -> None:
    attempts: tuple[Callable[[], object], ...] = (
        lambda: decode_head(json.dumps(head).encode()),
        lambda: read_array({"dtype": "uint8", **head}, memoryview(data), "uint8"),
        lambda: read_info(info),
    )
    for attempt in attempts:
        try:
            attempt()
        except ProtocolError:
            continue


@pytest.mark.parametrize("shape", [None, [2, -3], [2.0, 3], [True, 6], ["6"], 6, [10**30, 10**30], [5]])
def test_a_shape_that_the_bytes_do_not_have_is_a_protocol_error(shape: object) -> None:
    with pytest.raises(ProtocolError):
        read_array({"dtype": "uint8", "shape": shape}, memoryview(bytes(6)), "uint8")


def test_a_head_that_is_too_long_or_of_another_version_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        decode_head(encode_head("status", 1, text="x" * 70_000))
    with pytest.raises(ProtocolError, match="worker protocol 2"):
        decode_head(b'{"kstream": 2, "kind": "status", "id": 1}')
