"""What the server and its model workers say to each other: ZeroMQ messages of two frames.

The first frame is a small JSON object, the head; the second holds an array's bytes, or nothing. A worker answers every
request once, with the request's ``id``.

========== =============================================================== ==========================================
kind       request                                                         reply
========== =============================================================== ==========================================
status                                                                     ``pid models is_busy n_frames rss_bytes``
describe   ``model timeout_s``                                             ``info``
segment    ``model sha256 timeout_s dtype shape`` + complex64 ``(z, y, x)``  ``dtype shape provenance warnings seconds``
                                                                           + uint8 labels
evaluate   ``model timeout_s shapes`` + float32 arrays, one after another  ``shapes provenance`` + float32 arrays
========== =============================================================== ==========================================

Instead of its reply, a request may get ``error`` (our error's fields) or ``busy`` (the worker's queue is full).
A reply with ``is_last`` is the last of its process: it ends afterwards, because it has grown too large, or because its
model no longer works.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import errors
from ..errors import KstreamError, ModelError, ProtocolError
from ..segment import STEPS, ModelInfo
from ..types import LabelTable

VERSION = 1
MAX_HEAD_BYTES = 1 << 16
MAX_MESSAGE_BYTES = 1 << 30
"""Of one frame: a difference of 512 slices of 512 x 512 voxels, the largest plane that is segmented."""

MAX_TIMEOUT_S = 3600.0
"""Longest that a worker works on one request."""

COPY_BELOW_BYTES = 1 << 16
"""Smaller frames are copied: handing over a buffer costs more than that."""

Head = dict[str, Any]

_RAISED = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, KstreamError)
}


def encode_head(kind: str, request: int, **fields: Any) -> bytes:
    """The first frame of a message."""
    return json.dumps({"kstream": VERSION, "kind": kind, "id": request, **fields}).encode()


def decode_head(data: bytes | memoryview) -> Head:
    """Read the first frame of a message.

    Raises
    ------
    ProtocolError : it is not a head of our version.
    """
    try:
        head = json.loads(bytes(data)) if len(data) <= MAX_HEAD_BYTES else None
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or not isinstance(head.get("kind"), str) or not isinstance(head.get("id"), int):
        raise ProtocolError("not a message between kstream and a model worker", likely="another program's address")
    if head.get("kstream") != VERSION:
        raise ProtocolError(
            f"a message of worker protocol {head.get('kstream')!r}, this kstream speaks {VERSION}",
            likely="server and worker of different versions",
            hint="install the same version on both sides",
        )
    return head


def array_fields(array: NDArray[Any]) -> Head:
    """Fields of the head that describe the array in the second frame."""
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def read_array(head: Head, payload: memoryview, dtype: str) -> NDArray[Any]:
    """The array in the second frame, not copied; read-only.

    Raises
    ------
    ProtocolError : it is of another type than `dtype`, or the bytes are not those of its shape.
    """
    shape = head.get("shape")
    is_shape = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if head.get("dtype") != dtype or shape is None or not is_shape:
        raise ProtocolError(f"an array of type {head.get('dtype')!r} and shape {shape!r}, expected {dtype}")
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes != payload.nbytes:
        raise ProtocolError(f"an array of {n_bytes} bytes came with {payload.nbytes} bytes")
    return np.frombuffer(payload, dtype).reshape(shape)


def pack_arrays(arrays: Sequence[NDArray[np.float32]]) -> tuple[Head, bytes]:
    """Field of the head and bytes of the second frame for several float32 arrays."""
    samples = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)
    return {"shapes": [list(array.shape) for array in arrays]}, samples


def read_arrays(head: Head, payload: memoryview) -> tuple[NDArray[np.float32], ...]:
    """The float32 arrays in the second frame, not copied; read-only.

    Raises
    ------
    ProtocolError : the bytes are not those of the shapes.
    """
    shapes = head.get("shapes")
    if not isinstance(shapes, list) or not all(
        isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) for shape in shapes
    ):
        raise ProtocolError(f"arrays of shapes {str(shapes)[:80]}")
    sizes = [math.prod(shape) for shape in shapes]
    if 4 * sum(sizes) != payload.nbytes:
        raise ProtocolError(f"arrays of {4 * sum(sizes)} bytes came with {payload.nbytes} bytes")
    values = np.frombuffer(payload, "<f4")
    starts = np.cumsum([0, *sizes])
    return tuple(
        values[start : start + size].reshape(shape) for start, size, shape in zip(starts, sizes, shapes, strict=False)
    )


def error_fields(error: KstreamError) -> Head:
    """What an ``error`` reply says."""
    return {
        "type": type(error).__name__,
        "what": error.what,
        "where": error.where,
        "likely": error.likely,
        "hint": error.hint,
        "code": error.code,
    }


def read_error(head: Head) -> KstreamError:
    """The error that an ``error`` reply tells; a class that is not in our tree becomes `ModelError`."""
    kind = _RAISED.get(str(head.get("type")), ModelError)
    where, likely, hint = (str(head.get(key, "")) for key in ("where", "likely", "hint"))
    code = str(head.get("code", ""))
    return kind(
        str(head.get("what", "no reason given")),
        where=where,
        likely=likely,
        hint=hint,
        code=code if re.fullmatch("[a-z_]{1,32}", code) else "",
    )


def read_seconds(head: Head) -> dict[str, float]:
    """Where the time of a volume went, as the worker says; what is no number of a step is left out."""
    told = head.get("seconds")
    steps = told.items() if isinstance(told, dict) else ()
    return {
        name: float(spent)
        for name, spent in steps
        if name in STEPS and isinstance(spent, (int, float)) and 0 <= spent <= MAX_TIMEOUT_S
    }


def info_fields(info: ModelInfo) -> Head:
    """A model's description as JSON."""
    labels = [
        {"name": name, "colour": list(colour)}
        for name, colour in zip(info.labels.names, info.labels.colours, strict=True)
    ]
    patch = {"depth": info.patch_depth, "stride": info.patch_stride}
    return {"name": info.name, "labels": labels, "patch": patch, "sha256": info.sha256}


def read_info(plain: Mapping[str, Any] | None) -> ModelInfo:
    """A model's description from JSON.

    Raises
    ------
    ProtocolError : something is missing or of another kind.
    """
    try:
        given = dict(plain or {})
        names = tuple(str(entry["name"]) for entry in given["labels"])
        colours = tuple((int(r), int(g), int(b)) for r, g, b in (entry["colour"] for entry in given["labels"]))
        depth, stride = int(given["patch"]["depth"]), int(given["patch"]["stride"])
        return ModelInfo(str(given["name"]), LabelTable(names, colours), depth, stride, str(given["sha256"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"a model's description cannot be read: {error!r}") from error
