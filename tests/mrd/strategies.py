"""Hypothesis strategies for every MRD message: valid ones, and streams of them that somebody has damaged."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kstream.mrd.codec import encode
from kstream.mrd.messages import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Message,
    Query,
    Response,
    Text,
    Waveform,
)
from kstream.types import Acquisition
from tests.fuzz.mutate import mutate

COMPRESSION_FLAGS = 0b1111 << 52

u64 = st.integers(0, 2**64 - 1)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=255)
xml_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs", "Cc")), max_size=20)
metas = st.dictionaries(xml_texts, xml_texts | st.lists(xml_texts, min_size=2, max_size=3), max_size=3)


@st.composite
def headers(draw: st.DrawFn, /, dtype: np.dtype[Any], **fields: Any) -> Any:
    """A structured scalar with any bits in every field (NaN and infinity among the floats), but for `fields`."""
    header = np.frombuffer(bytearray(draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))), dtype)[0]
    for name, value in fields.items():
        header[name] = value
    return header


@st.composite
def acquisitions(draw: st.DrawFn, max_coils: int = 5, max_samples: int = 9) -> Acquisition:
    """Any header whose sizes are those of the arrays and whose compression flags are not set; any samples."""
    n_coils, n_samples = draw(st.integers(1, max_coils)), draw(st.integers(1, max_samples))
    n_dims = draw(st.integers(0, 3))
    header = draw(
        headers(
            ACQUISITION_HEADER,
            flags=draw(u64) & ~COMPRESSION_FLAGS,
            number_of_samples=n_samples,
            active_channels=n_coils,
            trajectory_dimensions=n_dims,
        )
    )
    parts = draw(hnp.arrays("<f4", (n_coils, n_samples, 2)))
    return Acquisition(header, parts.view("<c8")[..., 0], draw(hnp.arrays("<f4", (n_samples, n_dims))))


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Any header whose sizes, type and attribute length `encode` sets; any pixels of the types that kstream sends."""
    dtype, data_type = draw(st.sampled_from([("<u2", 1), ("<f4", 5), ("<c8", 7)]))
    shape = draw(st.tuples(*[st.integers(1, 3)] * 4))
    raw = draw(hnp.arrays("u1", (*shape, np.dtype(dtype).itemsize)))
    header = draw(headers(IMAGE_HEADER, data_type=data_type, channels=shape[0], matrix_size=shape[:0:-1]))
    return Image(header, draw(metas), raw.view(dtype)[..., 0])


@st.composite
def waveforms(draw: st.DrawFn) -> Waveform:
    """Any header whose sizes are those of the array (either may be 0); any samples."""
    shape = draw(st.tuples(st.integers(0, 3), st.integers(0, 7)))
    header = draw(headers(WAVEFORM_HEADER, channels=shape[0], number_of_samples=shape[1]))
    return Waveform(header, draw(hnp.arrays("<u4", shape)))


messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(ConfigFile, names),
    st.builds(ConfigText, texts),
    st.builds(Header, st.binary(min_size=1, max_size=40).filter(lambda xml: not xml.endswith(b"\0"))),
    st.builds(Text, texts),
    st.builds(Query, u64, texts),
    st.builds(Response, u64, texts),
    st.builds(Error, texts),
    st.just(Close()),
    acquisitions(),
    images(),
    waveforms(),
)
"""Every kind of message, each of which survives the way over the wire unchanged."""


@st.composite
def damaged_streams(draw: st.DrawFn) -> tuple[list[Message], bytes, int]:
    """Messages, the bytes of them after some damage, and how many messages come before the damage."""
    sent = draw(st.lists(messages, min_size=1, max_size=5))
    damaged, n_intact = mutate([encode(message) for message in sent], random.Random(draw(st.integers(0, 2**32))))
    return sent, b"".join(damaged), n_intact
