"""Bytes <-> messages, with no socket in sight.

``Decoder.receive`` takes whatever the socket gave and gives the messages that became whole; ``encode`` does the
reverse. ``Decoder.space`` with ``Decoder.filled``, and ``encode_parts``, do the same without copying the samples.
Everything is little-endian, without padding, magic or length of the whole message, so a reader that meets
an unknown id cannot find the next message: the decoder then stops for good.

Each kind of message is one row of ``FORMATS``: how many bytes must be seen before its length is known (`prefix`), how
to compute that length and refuse what is too large or impossible (`measure`), and how to make the message (`build`).

**Memory.** Small messages are cut out of one buffer that is used again. A message of more than ``LARGE`` bytes gets a
buffer of exactly its size, once `measure` has agreed to its header and the limits; its arrays view that buffer, which
nobody else writes to. The buffer is reserved, not written: a page of it costs memory when bytes of the stream come to
lie there, so a header that announces 64 MiB and sends nothing costs a few pages. A scan sends thousands of
acquisitions of one size, so the buffer of the next message is made as large as the last one before it begins: if that
was right, the socket has written the samples where they stay; if not, they are copied once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ProtocolError
from ..types import Acquisition, AcquisitionFlag, Complex, Float
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
    Opaque,
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

CHUNK = 2**16
"""Bytes of the buffer that small messages are cut out of."""

LARGE = 2**15
"""A message of more bytes has a buffer of its own: copying it would cost more than a system call."""

FORESEEN = 2**19
"""Up to this size the next message is expected to be as large as the last; beside larger ones copying is little."""

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

_COMPRESSED = int(  # not the flags themselves: their `&` takes as long as all the rest of measuring
    AcquisitionFlag.COMPRESSION1
    | AcquisitionFlag.COMPRESSION2
    | AcquisitionFlag.COMPRESSION3
    | AcquisitionFlag.COMPRESSION4
)
_ACQUISITION_ID = struct.pack("<H", MessageId.ACQUISITION)
_SENT_DATA_TYPES = {dtype: number for number, dtype in IMAGE_DTYPES.items() if number in (1, 5, 7)}
_UINT16_MAX = 65535

# Only what decides over sizes is read field by field; a structured scalar takes 0.2 us for each field.
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_ACQUISITION_SIZES = struct.Struct("<2xQ24xH2xH136xH")  # flags, samples, coils, trajectory dimensions
_IMAGE_SIZES = struct.Struct("<2xH12x3H12xH")  # data type, x, y, z, channels
_WAVEFORM_SIZES = struct.Struct("<28xHH")  # samples, channels
_F32, _C64, _U32_ARRAY = np.dtype("<f4"), np.dtype("<c8"), np.dtype("<u4")


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
    buffer_bytes: int = 2**30


Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Format:
    """How one kind of message is laid out after its id.

    Parameters
    ----------
    prefix : bytes after the id that tell the length of the whole.
    measure : (prefix, limits) -> bytes after the id; raises ProtocolError without a place.
    build : all bytes after the id -> the message, whose arrays may view them.
    is_nested : lengths stand among the data: `measure` gets all bytes that have come, and is asked again until as many
        have come as it gives.
    """

    prefix: int
    measure: Callable[[memoryview, Limits], int]
    build: Callable[[memoryview], Message]
    is_nested: bool = False


class Decoder:
    """Turns a stream of bytes into messages, however the bytes are cut.

    `receive` takes bytes that exist already. A socket rather writes to where the bytes stay::

        n = connection.recv_into(decoder.space())
        for message in decoder.filled(n):
            handle(message)
        if decoder.error is not None:
            raise decoder.error

    No message is lost to a bad successor: the messages before the bad bytes are handed over, and the error is raised
    by the next call (at once if there was no good message to hand over). `error` holds it from the moment it is
    known, so a caller that does not want to wait for more bytes looks there. After an error the decoder is dead: every
    further call raises the same error.

    Arrays of messages can be written to and stay as they are, whatever is decoded later.

    Parameters
    ----------
    limits : largest message of each kind.
    formats : the kinds of message that are read, by id; None reads those of an MRD session.
    """

    def __init__(self, limits: Limits | None = None, formats: Mapping[int, Format] | None = None) -> None:
        self.limits = Limits() if limits is None else limits
        self._formats = FORMATS if formats is None else formats
        self.n_messages = 0
        self.error: ProtocolError | None = None
        self._view = _reserve(CHUNK)
        self._start = 0  # of the unfinished message in the view
        self._end = 0  # of the received bytes in the view
        self._is_given = False  # to a message, which views it
        self._expected = CHUNK  # size of the next buffer
        self._offset = 0  # of the unfinished message in the whole stream
        self._needed = ID_BYTES  # bytes of the unfinished message before it can go on
        self._id = 0
        self._format: Format | None = None
        self._is_measured = False

    @property
    def pending(self) -> int:
        """Bytes received of a message that is not whole yet."""
        return self._end - self._start

    def space(self) -> memoryview:
        """Where the next bytes of the stream belong: at least one byte, valid until the next `filled` or `receive`.

        Raises
        ------
        ProtocolError
            If the stream has met an error already.
        """
        if self.error is not None:
            raise self.error
        n_received = self._end - self._start
        if self._is_measured and self._needed > LARGE:
            if self._start or self._needed != len(self._view):
                self._move(self._needed)
        elif self._needed > len(self._view):  # of a nested message, whose end is not known
            self._move(self._needed + self._needed // 2 + CHUNK)
        elif self._is_given or (n_received == 0 and len(self._view) != self._expected):
            self._move(self._expected)
        elif n_received == 0:
            self._start = self._end = 0
        elif self._start + max(self._needed, LARGE) > len(self._view):
            self._view[:n_received] = self._view[self._start : self._end]
            self._start, self._end = 0, n_received
        return self._view[self._end :]

    def filled(self, n_bytes: int) -> list[Message]:
        """Say that `n_bytes` of the stream were written to the front of `space`; give the messages that they complete.

        Raises
        ------
        ProtocolError
            If the stream is not MRD, or a message exceeds a limit; names message number, id and byte offset.
        """
        if self.error is not None:
            raise self.error
        if not 0 <= n_bytes <= len(self._view) - self._end:
            raise ValueError(f"{n_bytes} bytes do not fit the space of {len(self._view) - self._end}")
        self._end += n_bytes
        messages: list[Message] = []
        try:
            while (message := self._read()) is not None:
                messages.append(message)
        except ProtocolError as error:
            self.error = error
            error.at(self._place())
            self._view = memoryview(b"")
            if not messages:
                raise
        return messages

    def receive(self, data: Bytes) -> list[Message]:
        """Take the next bytes of the stream, by copying them, and give the messages that they complete.

        Raises
        ------
        ProtocolError
            As `filled`.
        """
        if self.error is not None:
            raise self.error
        rest = memoryview(data).cast("B")
        messages: list[Message] = []
        while rest and self.error is None:
            space = self.space()
            n_bytes = min(len(space), len(rest))
            space[:n_bytes] = rest[:n_bytes]
            rest = rest[n_bytes:]
            try:
                messages += self.filled(n_bytes)
            except ProtocolError:
                if not messages:
                    raise
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
        n_bytes = self._end - self._start
        if n_bytes == 0:
            return
        if self._format is None:
            what = f"the stream ended inside a message id: got {n_bytes} of {ID_BYTES} bytes (truncated id)"
        else:
            least = "" if self._is_measured else "at least "
            what = f"the stream ended inside {self._name()}: got {n_bytes} of {least}{self._needed} bytes"
        self.error = ProtocolError(
            what,
            where=self._place(),
            likely="the sender stopped or the connection broke before CLOSE",
            code="truncated",
        )
        raise self.error

    def _read(self) -> Message | None:
        """Build the unfinished message, or note in ``_needed`` how many bytes it takes to go on and give None."""
        start, available = self._start, self._end - self._start
        if available < self._needed:
            return None
        if self._format is None:
            self._id = self._view[start] | self._view[start + 1] << 8
            self._format = _format_of(self._id, self._formats)
            self._needed = ID_BYTES + self._format.prefix
            if available < self._needed:
                return None
        if not self._is_measured:
            is_nested = self._format.is_nested
            seen = self._view[start + ID_BYTES : start + (available if is_nested else self._needed)]
            self._needed = ID_BYTES + self._format.measure(seen, self.limits)
            self._is_measured = not is_nested or self._needed <= available
            if available < self._needed:
                return None
        message = self._format.build(self._take())
        self._finish_message()
        return message

    def _take(self) -> memoryview:
        """All bytes of the unfinished message after its id: the buffer itself if the message fills it, or a copy."""
        if self._needed > LARGE:
            self._expected = self._needed if self._needed <= FORESEEN else CHUNK
            if self._needed == len(self._view):
                self._is_given = True
                return self._view[ID_BYTES:]
        return memoryview(bytearray(self._view[self._start + ID_BYTES : self._start + self._needed]))

    def _move(self, n_bytes: int) -> None:
        """Go on in a new buffer."""
        n_received = self._end - self._start
        view = _reserve(n_bytes)
        view[:n_received] = self._view[self._start : self._end]
        self._view, self._start, self._end, self._is_given = view, 0, n_received, False

    def _finish_message(self) -> None:
        self._start += self._needed
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


def _reserve(n_bytes: int) -> memoryview:
    """Writable bytes that lie such that what follows a message id is aligned; not touched, so not yet in memory."""
    return np.empty(n_bytes + ID_BYTES, np.uint8).data[ID_BYTES:]


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
    return b"".join(encode_parts(message))


def encode_parts(message: Message) -> list[Bytes]:
    """Write one message as buffers whose concatenation is `encode`; each has items of one byte and is not empty.

    Samples, trajectories and pixels are not copied (if they are contiguous): the buffers view the arrays of the
    message, which must not change before the buffers are sent, with ``socket.sendmsg`` or one by one.

    Raises
    ------
    ProtocolError
        As `encode`.
    """
    match message:
        case Acquisition():
            return _encode_acquisition(message)
        case Image():
            return _encode_image(message)
        case Waveform():
            return _encode_waveform(message)
        case Text(text):
            return [_encode_text(MessageId.TEXT, _utf8(text))]
        case ConfigFile(name):
            return [_encode_config_file(name)]
        case ConfigText(text):
            return [_encode_text(MessageId.CONFIG_TEXT, _utf8(text))]
        case Header(xml):
            return [_encode_text(MessageId.HEADER, xml.rstrip(b"\0"))]
        case Close():
            return [struct.pack("<H", MessageId.CLOSE)]
        case Query(correlation, text):
            body = _utf8(text)
            return [struct.pack("<HQQQ", MessageId.QUERY, 0, correlation, len(body)) + body]
        case Response(correlation, text):
            body = _utf8(text)
            return [struct.pack("<HQQ", MessageId.RESPONSE, correlation, len(body)) + body]
        case Error(text):
            body = _utf8(text)
            return [struct.pack("<HQ", MessageId.ERROR, len(body)) + body]
        case Opaque(message_id, payload):
            return [struct.pack("<H", message_id), *([payload] if len(payload) else [])]


# ---- bytes -> message ------------------------------------------------------------------------------------------------


def _format_of(message_id: int, formats: Mapping[int, Format]) -> Format:
    found = formats.get(message_id)
    if found is not None:
        return found
    if message_id in DEPRECATED_IDS:
        raise ProtocolError(
            f"message id {message_id} is deprecated in MRD and not read",
            likely="the sender is older than 2015",
            hint="send acquisitions as id 1008 and images as id 1022",
            code="deprecated_message",
        )
    if message_id in UNSUPPORTED_IDS:
        raise ProtocolError(
            f"message id {message_id} ({UNSUPPORTED_IDS[message_id]}) is not supported",
            hint="send acquisitions (1008), images (1022) or waveforms (1026)",
            code="unsupported_message",
        )
    raise ProtocolError(
        f"message id {message_id} is unknown",
        likely="the peer does not speak MRD, or an earlier message had another length than it announced",
        hint="there is no way to find the next message: end the session",
        code="unknown_message",
    )


def _measure_nothing(prefix: memoryview, limits: Limits) -> int:
    return 0


def _measure_config_file(prefix: memoryview, limits: Limits) -> int:
    return CONFIG_FILE_BYTES


def _measure_text(cap: Callable[[Limits], int], what: str) -> Callable[[memoryview, Limits], int]:
    def measure(prefix: memoryview, limits: Limits) -> int:
        (n_bytes,) = _U32.unpack(prefix)
        if n_bytes == 0:
            raise ProtocolError(f"{what} is empty", hint="leave the message out", code="bad_size")
        return len(prefix) + _within(n_bytes, cap(limits), what)

    return measure


def _measure_long_text(what: str) -> Callable[[memoryview, Limits], int]:
    def measure(prefix: memoryview, limits: Limits) -> int:
        (n_bytes,) = _U64.unpack(prefix[-8:])
        return len(prefix) + _within(n_bytes, limits.text_bytes, what)

    return measure


def _measure_acquisition(prefix: memoryview, limits: Limits) -> int:
    flags, n_samples, n_coils, n_dims = _ACQUISITION_SIZES.unpack_from(prefix)
    if flags & _COMPRESSED:
        raise ProtocolError(
            "the acquisition is compressed (flags 53 to 56), which is not supported",
            likely="the sender was told to compress (ZFP or NHLBI)",
            hint="switch compression off at the sender: CompressionPrecision = CompressionTolerance = 0",
            code="compressed",
        )
    if n_samples == 0 or n_coils == 0:
        raise ProtocolError(
            f"the acquisition has {n_samples} samples of {n_coils} channels; both must be at least 1", code="bad_size"
        )
    if n_dims > MAX_TRAJECTORY_DIMENSIONS:
        raise ProtocolError(f"the acquisition has {n_dims} trajectory dimensions, expected 0 to 3", code="bad_size")
    n_bytes = n_samples * (4 * n_dims + 8 * n_coils)
    what = f"the acquisition of {n_samples} samples, {n_coils} channels and {n_dims} trajectory dimensions"
    return len(prefix) + _within(n_bytes, limits.acquisition_bytes, what)


def _measure_image(prefix: memoryview, limits: Limits) -> int:
    data_type, shape = _image_layout(prefix)
    (n_meta,) = _U64.unpack(prefix[-8:])
    if data_type not in IMAGE_DTYPES:
        raise ProtocolError(f"the image has data type {data_type}, expected 1 to 8", code="bad_image")
    if 0 in shape:
        raise ProtocolError(f"the image has (channels, z, y, x) = {shape}; each must be at least 1", code="bad_size")
    n_pixels = prod(shape) * IMAGE_DTYPES[data_type].itemsize
    n_bytes = _within(n_pixels, limits.image_bytes, f"the image of (channels, z, y, x) = {shape}")
    return len(prefix) + _within(n_meta, limits.meta_bytes, "the meta of the image") + n_bytes


def _measure_waveform(prefix: memoryview, limits: Limits) -> int:
    n_samples, n_channels = _WAVEFORM_SIZES.unpack_from(prefix)
    return len(prefix) + _within(4 * n_channels * n_samples, limits.waveform_bytes, "the waveform")


def _within(n_bytes: int, cap: int, what: str) -> int:
    if n_bytes > cap:
        raise ProtocolError(
            f"{what} takes {n_bytes} bytes, more than the limit of {cap}",
            likely="the sender does not speak MRD at this point of the stream, or the limit is too tight for this scan",
            code="too_large",
        )
    return n_bytes


def _build_config_file(payload: memoryview) -> Message:
    # Bytes after the first NUL may be uninitialised memory (ismrmrd_hdf5_to_stream): cut before decoding.
    return ConfigFile(_strict(bytes(payload).split(b"\0", 1)[0], "the configuration name"))


def _build_config_text(payload: memoryview) -> Message:
    return ConfigText(_strict(bytes(payload[4:]).rstrip(b"\0"), "the configuration text"))


def _build_header(payload: memoryview) -> Message:
    return Header(bytes(payload[4:]).rstrip(b"\0"))


def _build_text(payload: memoryview) -> Message:
    return Text(_lenient(payload[4:]))


def _build_query(payload: memoryview) -> Message:
    (correlation,) = _U64.unpack_from(payload, 8)
    return Query(correlation, _lenient(payload[24:]))


def _build_response(payload: memoryview) -> Message:
    (correlation,) = _U64.unpack_from(payload)
    return Response(correlation, _lenient(payload[16:]))


def _build_error(payload: memoryview) -> Message:
    return Error(_lenient(payload[8:]))


def _build_acquisition(payload: memoryview) -> Message:
    # Three views of one buffer; `ndarray` makes them in half the time of `frombuffer` and `reshape`.
    _, n_samples, n_coils, n_dims = _ACQUISITION_SIZES.unpack_from(payload)
    start = ACQUISITION_HEADER.itemsize
    trajectory: Float = np.ndarray((n_samples, n_dims), _F32, payload, start)
    data: Complex = np.ndarray((n_coils, n_samples), _C64, payload, start + 4 * n_samples * n_dims)
    return Acquisition(_scalar(payload, ACQUISITION_HEADER), data, trajectory)


def _build_image(payload: memoryview) -> Message:
    # A copy of the header, for a view of it would keep the pixels in memory as long as the header lives.
    header = _scalar(bytearray(payload[: IMAGE_HEADER.itemsize]), IMAGE_HEADER)
    data_type, shape = _image_layout(payload)
    (n_meta,) = _U64.unpack_from(payload, IMAGE_HEADER.itemsize)
    start = IMAGE_HEADER.itemsize + 8
    meta = meta_from_xml(bytes(payload[start : start + n_meta]))
    pixels = np.ndarray(shape, IMAGE_DTYPES[data_type], payload, start + n_meta)
    # The meta has any length, so that pixels may lie at any address.
    return Image(header, meta, pixels if pixels.flags.aligned else pixels.copy())


def _build_waveform(payload: memoryview) -> Message:
    n_samples, n_channels = _WAVEFORM_SIZES.unpack_from(payload)
    data = np.ndarray((n_channels, n_samples), _U32_ARRAY, payload, WAVEFORM_HEADER.itemsize)
    return Waveform(_scalar(payload, WAVEFORM_HEADER), data)


def _scalar(payload: memoryview | bytearray, dtype: np.dtype[Any]) -> Any:
    return np.ndarray((), dtype, payload)[()]


def _image_layout(header: memoryview) -> tuple[int, tuple[int, int, int, int]]:
    """Data type and ``(channels, z, y, x)``."""
    data_type, x, y, z, n_channels = _IMAGE_SIZES.unpack_from(header)
    return data_type, (n_channels, z, y, x)


def _strict(text: bytes, what: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"{what} is not UTF-8: {error.reason} at byte {error.start}", code="not_utf8") from error


def _lenient(text: memoryview) -> str:
    """Decode a text for people: a stray byte must not end a session."""
    return bytes(text).rstrip(b"\0").decode("utf-8", "replace")


FORMATS: dict[int, Format] = {
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


def _encode_acquisition(message: Acquisition) -> list[Bytes]:
    fault = acquisition_fault(message)
    if fault:
        raise ProtocolError(f"cannot send an acquisition: {fault}", where=message.place)
    head = _ACQUISITION_ID + message.header.tobytes()
    return [head, *_bytes_of(message.trajectory), *_bytes_of(message.data)]


def _encode_image(message: Image) -> list[Bytes]:
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
    head = struct.pack("<H", MessageId.IMAGE) + header.tobytes() + struct.pack("<Q", len(meta)) + meta
    return [head, *_bytes_of(data)]


def _encode_waveform(message: Waveform) -> list[Bytes]:
    data = np.asarray(message.data, _U32_ARRAY)
    if data.ndim != 2 or max(data.shape) > _UINT16_MAX:
        raise ProtocolError(f"cannot send a waveform of shape {data.shape}, expected (channels, samples)")
    header = np.zeros((), WAVEFORM_HEADER)  # field by field, so that the padding is zero
    for name in WAVEFORM_HEADER.names or ():
        header[name] = message.header[name]
    header["channels"], header["number_of_samples"] = data.shape
    return [struct.pack("<H", MessageId.WAVEFORM) + header.tobytes(), *_bytes_of(data)]


def _bytes_of(array: NDArray[Any]) -> list[Bytes]:
    """The bytes of an array in C order: a view if they lie so, nothing if it is empty."""
    if array.size == 0:
        return []
    return [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]
