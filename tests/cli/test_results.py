"""The account of a run from what a server told: lanes of its timeline, findings."""

from __future__ import annotations

from kstream.cli.results import _split_findings, _timeline

BREAST = [
    ("first acquisition", 1.0),
    ("last readout of frame 0", 2.0),
    ("magnitude of frame 0", 2.5),
    ("last readout of frame 1", 4.0),
    ("magnitude of frame 1", 4.25),
    ("labels of frame 1", 5.0),
]
SLICES = [
    ("first acquisition", 0.0),
    ("last readout of frame 0", 1.0),
    ("magnitude of frame 0", 1.25),
    ("labels of frame 0", 1.5),
    ("last readout of frame 0", 3.0),
    ("magnitude of frame 0", 3.25),
    ("labels of frame 0", 3.75),
]
CINE = [
    ("first acquisition", 0.0),
    ("last readout of frame 0", 1.0),
    ("labels of frame 0", 1.5),
    ("last readout of frame 1", 2.0),
    ("labels of frame 0", 3.0),
    ("labels of frame 1", 3.5),
]


def lanes(marks: list[tuple[str, float]]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for event in _timeline(marks):
        found.setdefault(event.name, []).append((event.start_s, event.end_s))
    return found


def test_the_network_begins_when_the_image_is_there() -> None:
    assert lanes(BREAST) == {
        "acquisition": [(1.0, 2.0), (2.0, 4.0)],
        "reconstruction": [(2.0, 2.5), (4.0, 4.25)],
        "network": [(4.25, 5.0)],
    }


def test_slices_of_one_frame_keep_their_own_times() -> None:
    assert lanes(SLICES)["reconstruction"] == [(1.0, 1.25), (3.0, 3.25)]
    assert lanes(SLICES)["network"] == [(1.25, 1.5), (3.25, 3.75)]


def test_labels_that_come_once_more_began_at_the_newest_readout() -> None:
    assert lanes(CINE) == {"acquisition": [(0.0, 1.0), (1.0, 2.0)], "network": [(1.0, 1.5), (2.0, 3.0), (2.0, 3.5)]}


def test_findings_are_taken_out_of_the_texts() -> None:
    texts = ["hello", '{"kind": "cine findings", "model": "m"}', '{"kind": "other"}', "{ no JSON findings"]
    found, others = _split_findings(texts)
    assert found == {"kind": "cine findings", "model": "m"}
    assert others == [texts[0], *texts[2:]]
