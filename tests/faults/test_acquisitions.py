"""Rows 14 to 23: the acquisitions themselves."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kstream.mrd.codec import encode
from kstream.mrd.messages import ACQUISITION_HEADER, Close, new_acquisition
from kstream.types import Acquisition, AcquisitionFlag
from tests.faults.harness import (
    N_IMAGES,
    PER_FRAME,
    STARS,
    Client,
    Oracle,
    acquisitions,
    opening,
    scan_messages,
    wait_until,
    wire,
)

SCAN = acquisitions()


def session(*changed: Any) -> list[Any]:
    """A whole session with these acquisitions."""
    return [*opening(), *changed, Close()]


def with_header(acquisition: Acquisition, **fields: Any) -> Acquisition:
    """A copy whose header fields (or counters) have other values."""
    header = acquisition.header.copy()
    for name, value in fields.items():
        if name in (header["idx"].dtype.names or ()):
            header["idx"][name] = value
        else:
            header[name] = value
    return replace(acquisition, header=header)


def patched(offset: int, value: bytes) -> bytes:
    """A good acquisition with other bytes in its header."""
    data = bytearray(encode(SCAN[3]))
    data[2 + offset : 2 + offset + len(value)] = value
    return bytes(data)


def test_row_14_header_cut_at_every_byte_is_told_with_its_offset(oracle: Oracle) -> None:
    before = wire(*opening())
    message = encode(SCAN[3])
    for n_bytes in range(1, 2 + ACQUISITION_HEADER.itemsize):
        text = oracle.refused(before, message[:n_bytes], outcome="truncated", half_close=True)
        assert f"byte offset {len(before)}" in text
        assert f"got {n_bytes} of" in text
    text = oracle.refused(before, *SCAN[:3], message[:300], outcome="truncated", half_close=True)
    assert "inside ACQUISITION" in text
    assert "ended without CLOSE" in oracle.refused(before, outcome="ended_without_close", half_close=True)


def test_row_15_samples_and_trajectory_cut_at_every_boundary_are_told(oracle: Oracle) -> None:
    small = new_acquisition(np.ones((3, 5), np.complex64), np.zeros((5, 2), np.float32))
    before, message = wire(*opening()), encode(small)
    start = 2 + ACQUISITION_HEADER.itemsize
    boundaries = range(start, len(message), 4)
    cuts = sorted({*boundaries, *(b + 1 for b in boundaries), len(message) - 1})
    for n_bytes in cuts:
        text = oracle.refused(before, message[:n_bytes], outcome="truncated", half_close=True)
        assert f"got {n_bytes} of {len(message)} bytes" in text


def test_row_15_readout_that_is_cut_is_discarded_and_earlier_frames_are_kept(oracle: Oracle) -> None:
    cut = encode(SCAN[PER_FRAME])[:-1]
    oracle.expect("truncated")
    client = Client(oracle.server.port).send(*opening(), *SCAN[:PER_FRAME], cut).half_close()
    assert "inside ACQUISITION" in client.reason()
    assert client.pixels == oracle.accepted(*scan_messages()).pixels[: STARS.nz]


SIZES = {
    "no samples": (34, 0, "bad_size"),
    "no channels": (38, 0, "bad_size"),
    "65535 channels": (38, 65535, "too_large"),
    "65535 samples of as many channels": (34, 65535, "too_large"),
}


@pytest.mark.parametrize("case", SIZES)
def test_row_16_impossible_sizes_are_refused_before_allocation(oracle: Oracle, case: str) -> None:
    offset, value, outcome = SIZES[case]
    data = bytearray(patched(offset, struct.pack("<H", value)))
    if outcome == "too_large":
        data[2 + 34 : 2 + 36] = data[2 + 38 : 2 + 40] = struct.pack("<H", 65535)
    before = oracle.server.rss_bytes
    oracle.refused(*opening(), *SCAN[:3], bytes(data), outcome=outcome)
    assert oracle.server.rss_bytes - before < 2**23


def test_row_16_header_at_the_limit_that_sends_nothing_costs_no_memory(oracle: Oracle) -> None:
    """64 MiB announced, one byte sent: what is reserved is not touched."""
    announced = bytearray(patched(34, struct.pack("<H", 8000)))
    announced[2 + 38 : 2 + 40] = struct.pack("<H", 1000)
    before = oracle.server.rss_bytes
    clients = [Client(oracle.server.port).send(*opening(), *SCAN[:3], bytes(announced)) for _ in range(5)]
    oracle.expect("message_timeout", 5)
    for client in clients:
        assert "did not become whole in time" in client.reason()
    assert oracle.server.rss_bytes - before < 2**25


CHANGES = {
    "samples": (new_acquisition(np.ones((3, 29), np.complex64), STARS.spoke(1)[:29]), "29 samples"),
    "channels": (new_acquisition(np.ones((5, 30), np.complex64), STARS.spoke(1)), "5 coils"),
    "one channel": (new_acquisition(np.ones((1, 30), np.complex64), STARS.spoke(1)), "1 coils"),
}


@pytest.mark.parametrize("at", [0, 1, PER_FRAME + 1])
@pytest.mark.parametrize("case", CHANGES)
def test_row_17_sizes_that_change_end_the_session_with_the_place(oracle: Oracle, case: str, at: int) -> None:
    changed, words = CHANGES[case]
    text = oracle.refused(*session(*SCAN[:at], changed, *SCAN[at:]), outcome="shape")
    assert words in text
    assert "scan_counter" in text


def test_row_17_trajectory_that_gets_a_third_dimension_gives_the_same_images(oracle: Oracle) -> None:
    deep = [replace(a, trajectory=np.pad(a.trajectory, ((0, 0), (0, 1)))) for a in SCAN[PER_FRAME:]]
    mixed = [*SCAN[:PER_FRAME], *(with_header(a, trajectory_dimensions=3) for a in deep)]
    assert oracle.accepted(*session(*mixed)).pixels == oracle.accepted(*scan_messages()).pixels


@pytest.mark.parametrize("n_dims", [4, 65535])
def test_row_18_too_many_trajectory_dimensions_are_refused(oracle: Oracle, n_dims: int) -> None:
    text = oracle.refused(*opening(), patched(176, struct.pack("<H", n_dims)), outcome="bad_size")
    assert f"{n_dims} trajectory dimensions, expected 0 to 3" in text


def test_row_18_one_trajectory_dimension_is_no_place_in_k_space_and_counters_give_it(oracle: Oracle) -> None:
    flat = [with_header(replace(a, trajectory=a.trajectory[:, :1].copy()), trajectory_dimensions=1) for a in SCAN]
    client = oracle.accepted(*session(*flat))
    assert len(client.images) == N_IMAGES
    assert any("trajectory from golden-angle" in text for text in client.texts)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 4 * STARS.nx])
def test_row_18_trajectory_that_is_no_number_or_out_of_reach_is_an_error(oracle: Oracle, value: float) -> None:
    path = SCAN[5].trajectory.copy()
    path[7, 1] = value
    text = oracle.refused(*session(*SCAN[:5], replace(SCAN[5], trajectory=path), *SCAN[6:]), outcome="scan")
    assert "trajectory reaches" in text
    assert "in other units than declared" in text


def with_sample(acquisition: Acquisition, value: complex, everywhere: bool = False) -> Acquisition:
    data = acquisition.data.copy()
    data[... if everywhere else (1, 11)] = value
    return replace(acquisition, data=data)


@pytest.mark.parametrize("value", [complex(np.nan, 0), complex(0, np.inf), complex(-np.inf, np.nan)])
def test_row_19_sample_that_is_no_number_leaves_its_readout_aside_and_is_counted(
    oracle: Oracle, value: complex
) -> None:
    before = oracle.server.metric("kstream_acquisitions_set_aside_total", reason="not finite")
    client = oracle.accepted(*session(*SCAN[:5], with_sample(SCAN[5], value), *SCAN[6:]))
    assert any("NaN, Inf or huge" in text for text in client.warnings)
    assert any("frame 0 slice 0 is incomplete: 13 of 14" in text for text in client.warnings)
    assert len(client.images) == N_IMAGES
    assert all(np.isfinite(image.data).all() for image in client.images)
    wait_until(lambda: oracle.server.metric("kstream_acquisitions_set_aside_total", reason="not finite") == before + 1)


def test_row_19_denormal_samples_are_no_signal_and_that_is_told(oracle: Oracle) -> None:
    scan = [with_sample(a, 1e-45, everywhere=True) for a in SCAN]
    assert "no signal in any coil" in oracle.refused(*session(*scan), outcome="with_errors")


def test_row_19_one_denormal_readout_is_a_readout(oracle: Oracle) -> None:
    client = oracle.accepted(*session(*SCAN[:5], with_sample(SCAN[5], 1e-45, everywhere=True), *SCAN[6:]))
    assert len(client.images) == N_IMAGES
    assert all(np.isfinite(image.data).all() for image in client.images)


@pytest.mark.parametrize("value", [1e38, 3e38 + 3e38j])
@pytest.mark.parametrize("n", [1, len(SCAN)])
def test_row_19_samples_at_the_end_of_the_number_range_never_give_images_that_are_no_numbers(
    oracle: Oracle, value: complex, n: int
) -> None:
    changed = [with_sample(a, value, everywhere=True) for a in SCAN[:n]]
    client = Client(oracle.server.port).send(*session(*changed, *SCAN[n:])).receive_all()
    assert client.is_closed
    flagged = [text for text in client.texts if text.startswith(("ERR", "WRN"))]
    assert flagged
    assert all(np.isfinite(image.data).all() for image in client.images)
    oracle.expect("with_errors" if client.errors else "completed")


BEYOND = {
    "spoke": {"kspace_encode_step_1": 65535},
    "partition": {"kspace_encode_step_2": 65535},
    "average": {"average": 65535},
    "slice": {"slice": 65535},
    "slice just beyond": {"slice": 1},
}


@pytest.mark.parametrize("case", BEYOND)
def test_row_20_counter_beyond_its_limit_is_left_aside_with_a_warning(oracle: Oracle, case: str) -> None:
    before = oracle.server.rss_bytes
    client = oracle.accepted(*session(*SCAN[:5], with_header(SCAN[5], **BEYOND[case]), *SCAN[6:]))
    assert any("outside the planned frames" in text for text in client.warnings)
    assert any("incomplete: 13 of 14" in text for text in client.warnings)
    assert len(client.images) == N_IMAGES
    assert oracle.server.rss_bytes - before < 2**24


@pytest.mark.parametrize("counter", ["repetition", "contrast", "phase", "set", "segment"])
def test_row_20_counter_that_numbers_nothing_here_may_wrap(oracle: Oracle, counter: str) -> None:
    """The header says that it does not run, so it does not number frames."""
    wrapped = [with_header(a, **{counter: (65530 + i) % 65536}) for i, a in enumerate(SCAN)]
    client = oracle.accepted(*session(*wrapped))
    assert len(client.images) == N_IMAGES


def flagged(acquisition: Acquisition, flag: AcquisitionFlag) -> Acquisition:
    return with_header(acquisition, flags=np.uint64(int(flag)))


def test_row_21_duplicate_readout_counts_once(oracle: Oracle) -> None:
    client = oracle.accepted(*session(*SCAN[:6], SCAN[5], *SCAN[6:]))
    assert client.pixels == oracle.accepted(*scan_messages()).pixels
    assert any("repeated" in text for text in client.warnings)


def test_row_21_missing_readout_is_told_with_its_frame(oracle: Oracle) -> None:
    client = oracle.accepted(*session(*SCAN[:20], *SCAN[21:]))
    assert any("frame 1 slice 0 is incomplete: 13 of 14 readouts came" in text for text in client.warnings)
    assert len(client.images) == N_IMAGES


def numbered(scan: Sequence[Acquisition], first: int = 1) -> list[Acquisition]:
    return [with_header(a, scan_counter=(first + i) % 2**32) for i, a in enumerate(scan)]


def test_row_21_gaps_of_the_scan_counter_are_told(oracle: Oracle) -> None:
    scan = numbered(SCAN)
    client = oracle.accepted(*session(*scan[:9], *scan[12:]))
    assert any("scan_counter" in text and "3 missing" in text for text in client.warnings), client.warnings


def test_row_21_whole_scan_tells_no_gap(oracle: Oracle) -> None:
    assert not oracle.accepted(*session(*numbered(SCAN, 2**32 - 5))).warnings
    assert not oracle.accepted(*scan_messages()).warnings  # a sender that leaves it at 0


def test_row_21_any_order_within_the_scan_gives_whole_frames(oracle: Oracle) -> None:
    order = np.random.default_rng(3).permutation(PER_FRAME)
    frames = [[SCAN[frame * PER_FRAME + i] for i in order] for frame in range(STARS.n_frames)]
    client = oracle.accepted(*session(*(a for frame in frames for a in frame)))
    assert len(client.images) == N_IMAGES
    assert not client.warnings


def test_row_21_reversed_readouts_are_turned_round(oracle: Oracle) -> None:
    turned = [
        flagged(
            replace(a, data=a.data[:, ::-1].copy(), trajectory=a.trajectory[::-1].copy()), AcquisitionFlag.IS_REVERSE
        )
        for a in SCAN
    ]
    assert oracle.accepted(*session(*turned)).pixels == oracle.accepted(*scan_messages()).pixels


NOT_IMAGING = (
    AcquisitionFlag.IS_DUMMYSCAN_DATA,
    AcquisitionFlag.IS_NAVIGATION_DATA,
    AcquisitionFlag.IS_PHASECORR_DATA,
    AcquisitionFlag.IS_HPFEEDBACK_DATA,
    AcquisitionFlag.IS_RTFEEDBACK_DATA,
    AcquisitionFlag.IS_SURFACECOILCORRECTIONSCAN_DATA,
    AcquisitionFlag.IS_PARALLEL_CALIBRATION,
)


def test_row_21_readouts_that_are_not_for_imaging_are_routed_by_their_flag(oracle: Oracle) -> None:
    others = [flagged(with_sample(SCAN[0], 99), flag) for flag in NOT_IMAGING]
    mixed = [m for pair in zip(SCAN, others * len(SCAN), strict=False) for m in pair]
    client = oracle.accepted(*session(*mixed))
    assert client.pixels == oracle.accepted(*scan_messages()).pixels
    assert not client.warnings


def test_row_21_noise_readouts_prewhiten_and_enter_no_frame(oracle: Oracle) -> None:
    noise = STARS.acquisitions(np.random.default_rng(0), noise=5)[:5]
    client = oracle.accepted(*session(*noise, *SCAN))
    assert len(client.images) == N_IMAGES
    assert client.pixels != oracle.accepted(*scan_messages()).pixels


LAST = AcquisitionFlag.LAST_IN_MEASUREMENT | AcquisitionFlag.LAST_IN_REPETITION | AcquisitionFlag.LAST_IN_SLICE


@pytest.mark.parametrize(
    "marked",
    [(), (len(SCAN) - 1,), (PER_FRAME - 1, len(SCAN) - 1), (3, 3 + PER_FRAME), range(len(SCAN))],
    ids=["never", "once", "twice", "too early", "always"],
)
def test_row_22_last_flags_do_not_decide_when_a_frame_is_whole(oracle: Oracle, marked: Sequence[int]) -> None:
    scan = [flagged(a, LAST) if i in marked else a for i, a in enumerate(SCAN)]
    assert oracle.accepted(*session(*scan)).pixels == oracle.accepted(*scan_messages()).pixels


def test_row_22_close_before_the_last_readout_flushes_once(oracle: Oracle) -> None:
    client = oracle.accepted(*session(*SCAN[: 2 * PER_FRAME + 5]))
    assert len(client.images) == N_IMAGES
    assert [t for t in client.warnings if "incomplete" in t] == [
        "WRN frame 2 slice 0 is incomplete: 5 of 14 readouts came"
    ]


@pytest.mark.parametrize("bit", [52, 53, 54, 55])
def test_row_23_compression_is_refused_by_name(oracle: Oracle, bit: int) -> None:
    text = oracle.refused(*opening(), *SCAN[:3], patched(2, struct.pack("<Q", 1 << bit)), outcome="compressed")
    assert "compressed (flags 53 to 56), which is not supported" in text
    assert "CompressionPrecision" in text
