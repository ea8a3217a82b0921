"""A process that speaks the worker protocol, and answers volumes with what is no answer."""

from __future__ import annotations

import json
import sys
from typing import Any

import zmq

from kstream.serve.worker_wire import decode_head

INFO = {
    "name": "liar",
    "labels": [{"name": "background", "colour": [0, 0, 0]}, {"name": "lesion", "colour": [255, 0, 0]}],
    "patch": {"depth": 4, "stride": 2},
    "sha256": "",
}

LIES: dict[int, tuple[dict[str, Any] | None, bytes]] = {
    1: ({"kind": "segment", "dtype": "uint8", "shape": [1, 2, 3]}, b"123456"),
    2: ({"kind": "segment", "dtype": "uint8", "shape": [5, 7, 11]}, b"too short"),
    3: ({"kind": "segment", "dtype": "object", "shape": [5, 7, 11]}, bytes(385)),
    4: ({"kind": "segment", "dtype": "uint8", "shape": [-5, -7, 11]}, bytes(385)),
    5: ({"kind": "describe", "info": INFO}, b""),
    6: ({"kind": "segment", "dtype": "uint8", "shape": [5, 7, 11], "provenance": 3}, bytes(385)),
    7: (None, b"not even JSON"),
    8: ({"kind": "segment", "kstream": 2}, b""),
}


def main() -> None:
    address = sys.argv[sys.argv.index("--address") + 1]
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(address)
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    while router in dict(poller.poll()):
        client, first, _ = router.recv_multipart()
        head = decode_head(first)
        fields, data = answer(head)
        said = b"\xff\xfe" if fields is None else json.dumps({"kstream": 1, "id": head["id"], **fields}).encode()
        router.send_multipart([client, said, data])


def answer(head: dict[str, Any]) -> tuple[dict[str, Any] | None, bytes]:
    """The truth, unless a volume is to be segmented: then the model's name is the number of a lie."""
    match head["kind"]:
        case "segment":
            return LIES[int(head["model"])]
        case "describe":
            return {"kind": "describe", "info": INFO}, b""
        case kind:
            return {"kind": kind}, b""


if __name__ == "__main__":
    main()
