"""What crosses the wire: messages, their order, the fields of their headers, and the limits on their size."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from kstream.mrd import codec, messages
from kstream.mrd.session import RULES, WIRE_NAMES, State
from kstream.types import AcquisitionFlag

from .markdown import code, from_rst, table

CLASSES = {name: kind for kind, name in WIRE_NAMES.items()}
ONLY_GADGETRON = ("RECON_DATA", "IMAGE_ARRAY", "BUCKET")


def page() -> str:
    return "\n".join([_kinds(), _order(), _headers(), _flags(), _images(), _limits()])


def _kinds() -> str:
    rows = []
    for kind in messages.MessageId:
        known = CLASSES.get(kind.name)
        text = (
            from_rst(known.__doc__ or "").split("\n\n")[0]
            if known
            else "Gadgetron's own; read and written as a gadget."
        )
        rows.append((str(int(kind)), code(kind.name), text))
    text = "## Messages\n\nEvery message begins with its id as `uint16`; all numbers are little-endian.\n\n"
    text += table(("id", "name", "what it is"), rows)
    refused = ", ".join(f"{number} ({name})" for number, name in sorted(codec.UNSUPPORTED_IDS.items()))
    deprecated = ", ".join(map(str, sorted(codec.DEPRECATED_IDS)))
    text += f"\nAn MRD session ends, with a reason, at any other id. Known by name and not read there: {refused}. "
    return text + f"Given up by MRD itself: {deprecated}.\n"


def _order() -> str:
    text = "## Order\n\n"
    for role, by_state in RULES.items():
        rows = []
        for state, following in by_state.items():
            for kind, state_after in following.items():
                rows.append((f"{state.value}", code(WIRE_NAMES[kind]), f"{state_after.value}"))
        begin = "receiving data" if role == "client" else State.CONFIG.value
        text += f"### What a {role} may receive\n\nIt begins {begin}; what is not listed ends the session.\n\n"
        text += table(("while it is", "may come", "then it is"), rows) + "\n"
    return text


def _headers() -> str:
    text = "## Headers\n\n"
    for title, dtype in (
        ("ACQUISITION", messages.ACQUISITION_HEADER),
        ("IMAGE", messages.IMAGE_HEADER),
        ("WAVEFORM", messages.WAVEFORM_HEADER),
        ("Encoding counters (`idx` of an acquisition)", messages.ENCODING_COUNTERS),
    ):
        text += f"### {title}\n\n{dtype.itemsize} bytes.\n\n" + _layout(dtype) + "\n"
    return text


def _layout(dtype: np.dtype[np.void]) -> str:
    rows = []
    for name in dtype.names or ():
        kind, offset = (dtype.fields or {})[name][:2]
        shape = f"[{', '.join(map(str, kind.shape))}]" if kind.shape else ""
        rows.append((str(offset), code(name), f"{'counters' if kind.base.names else kind.base.name}{shape}"))
    return table(("byte", "field", "type"), rows)


def _flags() -> str:
    rows = [(str(int(flag).bit_length()), code(flag.name or "")) for flag in AcquisitionFlag]
    text = "## Flags of an acquisition\n\nFlag n is bit n - 1 of `flags`.\n\n"
    return text + table(("flag", "name"), rows)


def _images() -> str:
    sent = {number for dtype, number in codec._SENT_DATA_TYPES.items()}
    rows = [(str(n), dtype.name, "yes" if n in sent else "") for n, dtype in messages.IMAGE_DTYPES.items()]
    text = "## Images\n\nPixel types (`data_type`); all are read.\n\n" + table(("data_type", "pixels", "sent"), rows)
    kinds = [(str(number), name) for name, number in messages.IMAGE_TYPES.items()]
    return text + "\nKinds (`image_type`):\n\n" + table(("image_type", "kind"), kinds)


def _limits() -> str:
    defaults = codec.Limits()
    rows = [(code(f.name), _mib(getattr(defaults, f.name))) for f in fields(codec.Limits)]
    text = "## Largest messages\n\nChecked against the announced size, before memory is reserved. "
    text += "`kstream serve --message-mib` changes the one of acquisitions.\n\n"
    return text + table(("limit", "MiB"), rows)


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:g}"
