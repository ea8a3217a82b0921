"""Bytes <-> messages, with no socket in sight.

``Decoder.receive`` takes whatever the socket gave and gives the messages that became whole; ``encode`` does the
reverse. Everything is little-endian, without padding, magic or length of the whole message, so a reader that meets
an unknown id cannot find the next message: the decoder then stops for good.

Each kind of message is one row of ``FORMATS``: how many bytes must be seen before its length is known (`prefix`), how
to compute that length and refuse what is too large or impossible (`measure`), and how to make the message (`build`).
Nothing is allocated for a message before `measure` has agreed to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import ProtocolError
from ..types import Acquisition, AcquisitionFlag
from .messages import (
    ACQUISITION_HEADER,
    IMAGE_DTYPES,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Close,
    ConfigFile,
    ConfigText,
    Error,
    Header,
    Image,
    Message,
    MessageId,
    Query,
    Response,
    Text,
    Waveform,
    acquisition_fault,
)
from .meta import meta_from_xml, meta_to_xml

CONFIG_FILE_BYTES = 1024
ID_BYTES = 2
MAX_TRAJECTORY_DIMENSIONS = 3

DEPRECATED_IDS = frozenset({*range(1001, 1008), *range(1009, 1018), 1020, 1021})
"""Single-type acquisition and image messages that MRD gave up."""

UNSUPPORTED_IDS = {
    1018: "DICOM_WITHNAME",
    1019: "DEPENDENCY_QUERY",
    1023: "RECONDATA",
    1024: "IMAGE_ARRAY",
    1030: "NDARRAY",
    1050: "BUCKET",
    1051: "BUNDLE",
}
"""Messages that Gadgetron or newer tools exchange and kstream does not."""

_COMPRESSED = (
    AcquisitionFlag.COMPRESSION1
    | AcquisitionFlag.COMPRESSION2
    | AcquisitionFlag.COMPRESSION3
    | AcquisitionFlag.COMPRESSION4
)
_SENT_DATA_TYPES = {dtype: number for number, dtype in IMAGE_DTYPES.items() if number in (1, 5, 7)}
_UINT16_MAX = 65535


@dataclass(frozen=True)
class Limits:
    """Largest message of each kind that a decoder takes, in bytes; larger ones are refused before allocation.

    The format itself allows an acquisition of 34 GB (65535 samples of 65535 channels).
    """

    text_bytes: int = 2**20
    config_bytes: int = 2**20
    header_bytes: int = 16 * 2**20
    meta_bytes: int = 2**20
    acquisition_bytes: int = 64 * 2**20
    image_bytes: int = 512 * 2**20
    waveform_bytes: int = 16 * 2**20


@dataclass(frozen=True)
class Format:
    """How one kind of message is laid out after its id.

    Parameters
    ----------
    prefix : bytes after the id that tell the length of the whole.
    measure : (prefix, limits) -> bytes after the id; raises ProtocolError without a place.
    build : all bytes after the id -> the message.
    """

    prefix: int
    measure: Callable[[bytearray, Limits], int]
    build: Callable[[bytearray], Message]


class Decoder:
    """Turns a stream of bytes into messages, however the bytes are cut.

    No message is lost to a bad successor: `receive` hands over the messages before the bad bytes, and the error is
    raised by the next call of `receive` or `end` (at once if there was no good message to hand over). `error` holds it
    from the moment it is known, so a caller that does not want to wait for more bytes looks there::

        for message in decoder.receive(data):
            handle(message)
        if decoder.error is not None:
            raise decoder.error

    After an error the decoder is dead: every further call raises the same error.

    Parameters
    ----------
    limits : largest message of each kind.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = Limits() if limits is None else limits
        self.n_messages = 0
        self.error: ProtocolError | None = None
        self._buffer = bytearray()
        self._offset = 0  # of the unfinished message in the whole stream
        self._needed = ID_BYTES  # bytes of the unfinished message before it can go on
        self._id = 0
        self._format: Format | None = None
        self._is_measured = False

    def receive(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take the next bytes of the stream and give the messages that they complete.

        Raises
        ------
        ProtocolError
            If the stream is not MRD, or a message exceeds a limit; names message number, id and byte offset.
        """
        if self.error is not None:
            raise self.error
        self._buffer += data
        messages: list[Message] = []
        start = 0
        try:
            while (message := self._read(start)) is not None:
                messages.append(message)
                start += self._needed
                self._finish_message()
        except ProtocolError as error:
            self.error = error
            error.at(self._place())
            self._buffer.clear()
            if not messages:
                raise
            return messages
        del self._buffer[:start]
        return messages

    def end(self) -> None:
        """Say that the stream has ended.

        Raises
        ------
        ProtocolError
            If it ended inside a message, or an error is still waiting to be raised.
        """
        if self.error is not None:
            raise self.error
        if not self._buffer:
            return
        n_bytes = len(self._buffer)
        if self._format is None:
            what = f"the stream ended inside a message id: got {n_bytes} of {ID_BYTES} bytes (truncated id)"
        else:
            least = "" if self._is_measured else "at least "
            what = f"the stream ended inside {self._name()}: got {n_bytes} of {least}{self._needed} bytes"
        self.error = ProtocolError(
            what, where=self._place(), likely="the sender stopped or the connection broke before CLOSE"
        )
        raise self.error

    def _read(self, start: int) -> Message | None:
        """Build the message at `start`, or note in ``_needed`` how many bytes it takes to go on and give None."""
        available = len(self._buffer) - start
        if available < self._needed:
            return None
        if self._format is None:
            self._id = int.from_bytes(self._buffer[start : start + ID_BYTES], "little")
            self._format = _format_of(self._id)
            self._needed = ID_BYTES + self._format.prefix
            if available < self._needed:
                return None
        if not self._is_measured:
            prefix = self._buffer[start + ID_BYTES : start + self._needed]
            self._needed = ID_BYTES + self._format.measure(prefix, self.limits)
            self._is_measured = True
            if available < self._needed:
                return None
        return self._format.build(self._buffer[start + ID_BYTES : start + self._needed])

    def _finish_message(self) -> None:
        self._offset += self._needed
        self.n_messages += 1
        self._needed = ID_BYTES
        self._format = None
        self._is_measured = False

    def _name(self) -> str:
        return MessageId(self._id).name

    def _place(self) -> str:
        name = f" ({self._name()}, id {self._id})" if self._format is not None else ""
        return f"message {self.n_messages + 1}{name}, byte offset {self._offset}"


def encode(message: Message) -> bytes:
    """Write one message as the bytes that go on the wire.

    No NUL is written after texts. Sizes, data type and attribute length of an image header are set from the image
    itself; the sizes of an acquisition must agree with its header.

    Raises
    ------
    ProtocolError
        If the message cannot be sent: an empty text, a configuration name of more than 1023 bytes, an image that is
        not uint16, float32 or complex64, an acquisition that contradicts its header.
    """
    match message:
        case Acquisition():
            return _encode_acquisition(message)
        case Image():
            return _encode_image(message)
        case Waveform():
            return _encode_waveform(message)
        case Text(text):
            return _encode_text(MessageId.TEXT, _utf8(text))
        case ConfigFile(name):
            return _encode_config_file(name)
        case ConfigText(text):
            return _encode_text(MessageId.CONFIG_TEXT, _utf8(text))
        case Header(xml):
            return _encode_text(MessageId.HEADER, xml.rstrip(b"\0"))
        case Close():
            return struct.pack("<H", MessageId.CLOSE)
        case Query(correlation, text):
            body = _utf8(text)
            return struct.pack("<HQQQ", MessageId.QUERY, 0, correlation, len(body)) + body
        case Response(correlation, text):
            body = _utf8(text)
            return struct.pack("<HQQ", MessageId.RESPONSE, correlation, len(body)) + body
        case Error(text):
            body = _utf8(text)
            return struct.pack("<HQ", MessageId.ERROR, len(body)) + body


# ---- bytes -> message ------------------------------------------------------------------------------------------------


def _format_of(message_id: int) -> Format:
    if message_id in FORMATS:
        return FORMATS[MessageId(message_id)]
    if message_id in DEPRECATED_IDS:
        raise ProtocolError(
            f"message id {message_id} is deprecated in MRD and not read",
            likely="the sender is older than 2015",
            hint="send acquisitions as id 1008 and images as id 1022",
        )
    if message_id in UNSUPPORTED_IDS:
        raise ProtocolError(
            f"message id {message_id} ({UNSUPPORTED_IDS[message_id]}) is not supported",
            hint="send acquisitions (1008), images (1022) or waveforms (1026)",
        )
    raise ProtocolError(
        f"message id {message_id} is unknown",
        likely="the peer does not speak MRD, or an earlier message had another length than it announced",
        hint="there is no way to find the next message: end the session",
    )


def _measure_nothing(prefix: bytearray, limits: Limits) -> int:
    return 0


def _measure_config_file(prefix: bytearray, limits: Limits) -> int:
    return CONFIG_FILE_BYTES


def _measure_text(cap: Callable[[Limits], int], what: str) -> Callable[[bytearray, Limits], int]:
    def measure(prefix: bytearray, limits: Limits) -> int:
        (n_bytes,) = struct.unpack("<I", prefix)
        if n_bytes == 0:
            raise ProtocolError(f"{what} is empty", hint="leave the message out")
        return len(prefix) + _within(n_bytes, cap(limits), what)

    return measure


def _measure_long_text(what: str) -> Callable[[bytearray, Limits], int]:
    def measure(prefix: bytearray, limits: Limits) -> int:
        (n_bytes,) = struct.unpack("<Q", prefix[-8:])
        return len(prefix) + _within(n_bytes, limits.text_bytes, what)

    return measure


def _measure_acquisition(prefix: bytearray, limits: Limits) -> int:
    header = _scalar(prefix, ACQUISITION_HEADER)
    n_samples, n_coils = int(header["number_of_samples"]), int(header["active_channels"])
    n_dims = int(header["trajectory_dimensions"])
    if int(header["flags"]) & _COMPRESSED:
        raise ProtocolError(
            "the acquisition is compressed (flags 53 to 56), which is not supported",
            likely="the sender was told to compress (ZFP or NHLBI)",
            hint="switch compression off at the sender: CompressionPrecision = CompressionTolerance = 0",
        )
    if n_samples == 0 or n_coils == 0:
        raise ProtocolError(f"the acquisition has {n_samples} samples of {n_coils} channels; both must be at least 1")
    if n_dims > MAX_TRAJECTORY_DIMENSIONS:
        raise ProtocolError(f"the acquisition has {n_dims} trajectory dimensions, expected 0 to 3")
    n_bytes = n_samples * (4 * n_dims + 8 * n_coils)
    what = f"the acquisition of {n_samples} samples, {n_coils} channels and {n_dims} trajectory dimensions"
    return len(prefix) + _within(n_bytes, limits.acquisition_bytes, what)


def _measure_image(prefix: bytearray, limits: Limits) -> int:
    header = _scalar(prefix, IMAGE_HEADER)
    (n_meta,) = struct.unpack("<Q", prefix[-8:])
    data_type = int(header["data_type"])
    if data_type not in IMAGE_DTYPES:
        raise ProtocolError(f"the image has data type {data_type}, expected 1 to 8")
    shape = _image_shape(header)
    if 0 in shape:
        raise ProtocolError(f"the image has (channels, z, y, x) = {shape}; each must be at least 1")
    n_pixels = prod(shape) * IMAGE_DTYPES[data_type].itemsize
    n_bytes = _within(n_pixels, limits.image_bytes, f"the image of (channels, z, y, x) = {shape}")
    return len(prefix) + _within(n_meta, limits.meta_bytes, "the meta of the image") + n_bytes


def _measure_waveform(prefix: bytearray, limits: Limits) -> int:
    header = _scalar(prefix, WAVEFORM_HEADER)
    n_bytes = 4 * int(header["channels"]) * int(header["number_of_samples"])
    return len(prefix) + _within(n_bytes, limits.waveform_bytes, "the waveform")


def _within(n_bytes: int, cap: int, what: str) -> int:
    if n_bytes > cap:
        raise ProtocolError(
            f"{what} takes {n_bytes} bytes, more than the limit of {cap}",
            likely="the sender does not speak MRD at this point of the stream, or the limit is too tight for this scan",
        )
    return n_bytes


def _build_config_file(payload: bytearray) -> Message:
    # Bytes after the first NUL may be uninitialised memory (ismrmrd_hdf5_to_stream): cut before decoding.
    return ConfigFile(_strict(payload.split(b"\0", 1)[0], "the configuration name"))


def _build_config_text(payload: bytearray) -> Message:
    return ConfigText(_strict(payload[4:].rstrip(b"\0"), "the configuration text"))


def _build_header(payload: bytearray) -> Message:
    return Header(bytes(payload[4:].rstrip(b"\0")))


def _build_text(payload: bytearray) -> Message:
    return Text(_lenient(payload[4:]))


def _build_query(payload: bytearray) -> Message:
    (correlation,) = struct.unpack_from("<Q", payload, 8)
    return Query(correlation, _lenient(payload[24:]))


def _build_response(payload: bytearray) -> Message:
    (correlation,) = struct.unpack_from("<Q", payload)
    return Response(correlation, _lenient(payload[16:]))


def _build_error(payload: bytearray) -> Message:
    return Error(_lenient(payload[8:]))


def _build_acquisition(payload: bytearray) -> Message:
    header = _scalar(payload, ACQUISITION_HEADER)
    n_samples, n_coils = int(header["number_of_samples"]), int(header["active_channels"])
    n_dims = int(header["trajectory_dimensions"])
    start = ACQUISITION_HEADER.itemsize
    trajectory = np.frombuffer(payload, "<f4", n_samples * n_dims, start)
    data = np.frombuffer(payload, "<c8", n_coils * n_samples, start + trajectory.nbytes)
    return Acquisition(header, data.reshape(n_coils, n_samples), trajectory.reshape(n_samples, n_dims))


def _build_image(payload: bytearray) -> Message:
    header = _scalar(payload, IMAGE_HEADER)
    (n_meta,) = struct.unpack_from("<Q", payload, IMAGE_HEADER.itemsize)
    start = IMAGE_HEADER.itemsize + 8
    meta = meta_from_xml(bytes(payload[start : start + n_meta]))
    # The meta has any length: only a copy of the pixels is aligned.
    pixels = np.frombuffer(payload[start + n_meta :], IMAGE_DTYPES[int(header["data_type"])])
    return Image(header, meta, pixels.reshape(_image_shape(header)))


def _build_waveform(payload: bytearray) -> Message:
    header = _scalar(payload, WAVEFORM_HEADER)
    data = np.frombuffer(payload, "<u4", offset=WAVEFORM_HEADER.itemsize)
    return Waveform(header, data.reshape(int(header["channels"]), int(header["number_of_samples"])))


def _scalar(payload: bytearray, dtype: np.dtype[Any]) -> Any:
    return np.frombuffer(payload, dtype, 1)[0]


def _image_shape(header: Any) -> tuple[int, int, int, int]:
    x, y, z = (int(n) for n in header["matrix_size"])
    return int(header["channels"]), z, y, x


def _strict(text: bytes | bytearray, what: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from error


def _lenient(text: bytearray) -> str:
    """Decode a text for people: a stray byte must not end a session."""
    return text.rstrip(b"\0").decode("utf-8", "replace")


FORMATS: dict[MessageId, Format] = {
    MessageId.CONFIG_FILE: Format(0, _measure_config_file, _build_config_file),
    MessageId.CONFIG_TEXT: Format(
        4, _measure_text(lambda limits: limits.config_bytes, "the configuration text"), _build_config_text
    ),
    MessageId.HEADER: Format(4, _measure_text(lambda limits: limits.header_bytes, "the header"), _build_header),
    MessageId.CLOSE: Format(0, _measure_nothing, lambda payload: Close()),
    MessageId.TEXT: Format(4, _measure_text(lambda limits: limits.text_bytes, "the text"), _build_text),
    MessageId.QUERY: Format(24, _measure_long_text("the query"), _build_query),
    MessageId.RESPONSE: Format(16, _measure_long_text("the response"), _build_response),
    MessageId.ERROR: Format(8, _measure_long_text("the error text"), _build_error),
    MessageId.ACQUISITION: Format(ACQUISITION_HEADER.itemsize, _measure_acquisition, _build_acquisition),
    MessageId.IMAGE: Format(IMAGE_HEADER.itemsize + 8, _measure_image, _build_image),
    MessageId.WAVEFORM: Format(WAVEFORM_HEADER.itemsize, _measure_waveform, _build_waveform),
}


# ---- message -> bytes ------------------------------------------------------------------------------------------------


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace").rstrip(b"\0")


def _encode_text(message_id: MessageId, body: bytes) -> bytes:
    if not body:
        raise ProtocolError(f"an empty {message_id.name} is not sent: C++ readers look at the byte before its first")
    return struct.pack("<HI", message_id, len(body)) + body


def _encode_config_file(name: str) -> bytes:
    body = _utf8(name)
    if b"\0" in body or len(body) >= CONFIG_FILE_BYTES:
        raise ProtocolError(f"a configuration name has at most {CONFIG_FILE_BYTES - 1} bytes and no NUL: {name[:80]!r}")
    return struct.pack("<H", MessageId.CONFIG_FILE) + body.ljust(CONFIG_FILE_BYTES, b"\0")


def _encode_acquisition(message: Acquisition) -> bytes:
    fault = acquisition_fault(message)
    if fault:
        raise ProtocolError(f"cannot send an acquisition: {fault}", where=message.place)
    return b"".join(
        (
            struct.pack("<H", MessageId.ACQUISITION),
            message.header.tobytes(),
            message.trajectory.tobytes(),
            message.data.tobytes(),
        )
    )


def _encode_image(message: Image) -> bytes:
    data = message.data
    if data.dtype not in _SENT_DATA_TYPES:
        raise ProtocolError(
            f"cannot send an image of {data.dtype}",
            likely="peers read other types differently or not at all",
            hint="send uint16, float32 or complex64",
        )
    if data.ndim != 4 or not all(1 <= n <= _UINT16_MAX for n in data.shape):
        raise ProtocolError(f"cannot send an image of shape {data.shape}, expected (channels, z, y, x)")
    meta = meta_to_xml(message.meta)
    header = np.array(message.header, IMAGE_HEADER)
    header["data_type"] = _SENT_DATA_TYPES[data.dtype]
    header["channels"] = data.shape[0]
    header["matrix_size"] = data.shape[:0:-1]
    header["attribute_string_len"] = len(meta)
    return b"".join(
        (struct.pack("<H", MessageId.IMAGE), header.tobytes(), struct.pack("<Q", len(meta)), meta, data.tobytes())
    )


def _encode_waveform(message: Waveform) -> bytes:
    data = np.asarray(message.data, "<u4")
    if data.ndim != 2 or max(data.shape) > _UINT16_MAX:
        raise ProtocolError(f"cannot send a waveform of shape {data.shape}, expected (channels, samples)")
    header = np.zeros((), WAVEFORM_HEADER)  # field by field, so that the padding is zero
    for name in WAVEFORM_HEADER.names or ():
        header[name] = message.header[name]
    header["channels"], header["number_of_samples"] = data.shape
    return struct.pack("<H", MessageId.WAVEFORM) + header.tobytes() + data.tobytes()
