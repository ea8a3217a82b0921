"""Scans that are sound MRD and bad MRI, through the real server: declared policy, a count, a text, finite images."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kstream.mrd.messages import Close, Text
from kstream.types import Acquisition
from tests.faults.harness import N_IMAGES, PER_FRAME, STARS, Client, Oracle, acquisitions, opening, wait_until

SCAN = acquisitions()


def scan_with(settings: dict[str, Any], *changed: Acquisition) -> list[Any]:
    """A whole session with these acquisitions, and settings that the client sends."""
    return [*opening(), Text(json.dumps({"parameters": settings})), *changed, Close()]


def finite(client: Client) -> bool:
    return bool(client.images) and all(np.isfinite(image.data).all() for image in client.images)


def set_aside(oracle: Oracle, reason: str) -> float:
    return oracle.server.metric("kstream_acquisitions_set_aside_total", reason=reason)


def bad_input(oracle: Oracle, kind: str) -> float:
    return oracle.server.metric("kstream_bad_input_total", kind=kind)


def damaged(acquisition: Acquisition, value: complex) -> Acquisition:
    data = acquisition.data.copy()
    data[1, 11] = value
    return replace(acquisition, data=data)


def strayed(acquisition: Acquisition, samples: slice, value: float) -> Acquisition:
    trajectory = acquisition.trajectory.copy()
    trajectory[samples] = value
    return replace(acquisition, trajectory=trajectory)


@pytest.mark.parametrize("value", [complex(np.nan, 0), complex(0, np.inf)])
def test_samples_that_are_no_numbers_become_zero_by_option_and_no_readout_is_lost(
    oracle: Oracle, value: complex
) -> None:
    bad = [damaged(SCAN[5], value), damaged(SCAN[6], value)]
    client = oracle.accepted(*scan_with({"readouts.not_finite": "zero"}, *SCAN[:5], *bad, *SCAN[7:]))
    assert any("NaN, Inf or huge became 0" in text for text in client.warnings)
    assert any("2 readouts had samples" in text for text in client.warnings)
    assert not any("incomplete" in text for text in client.warnings)
    assert len(client.images) == N_IMAGES
    assert finite(client)


def test_samples_that_are_no_numbers_end_the_measurement_by_option(oracle: Oracle) -> None:
    session = scan_with({"readouts.not_finite": "error"}, *SCAN[:5], damaged(SCAN[5], np.nan), *SCAN[6:])
    assert "NaN, Inf or huge" in oracle.refused(*session, outcome="scan")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_few_samples_outside_the_declared_range_are_masked_by_option(oracle: Oracle, value: float) -> None:
    bad = strayed(SCAN[5], slice(-3, None), value)
    client = oracle.accepted(*scan_with({"trajectory.outside": "mask"}, *SCAN[:5], bad, *SCAN[6:]))
    assert any("3 samples lie outside the encoded k-space" in text for text in client.warnings)
    assert not any("incomplete" in text for text in client.warnings)
    assert len(client.images) == N_IMAGES
    assert finite(client)


def test_trajectory_that_is_mostly_outside_is_left_aside_by_option_and_counted(oracle: Oracle) -> None:
    before, bad = set_aside(oracle, "trajectory outside its range"), strayed(SCAN[5], slice(3, None), np.nan)
    client = oracle.accepted(*scan_with({"trajectory.outside": "mask"}, *SCAN[:5], bad, *SCAN[6:]))
    assert any("readout left aside" in text for text in client.warnings)
    assert any("frame 0 slice 0 is incomplete: 13 of 14" in text for text in client.warnings)
    assert finite(client)
    wait_until(lambda: set_aside(oracle, "trajectory outside its range") == before + 1)


def test_fewer_spokes_than_the_calibration_needs_are_told_counted_and_give_images(oracle: Oracle) -> None:
    before = bad_input(oracle, "few_calibration_spokes")
    client = oracle.accepted(*scan_with({"coils.calibration_spokes": 3}, *SCAN))
    assert any("3 spokes sample only the inner 1 of" in text for text in client.texts if text.startswith("WRN"))
    assert len(client.images) == N_IMAGES
    assert finite(client)
    # the session beside it, which has not ended yet, is counted too
    wait_until(lambda: bad_input(oracle, "few_calibration_spokes") >= before + 1)


def test_calibration_readouts_that_never_came_are_told_and_the_others_give_maps(oracle: Oracle) -> None:
    client = oracle.accepted(*scan_with({}, *SCAN[PER_FRAME - 4 :]))
    assert any("coil maps from 4 of 14 calibration readouts" in text for text in client.warnings)
    assert any("frame 0 slice 0 is incomplete: 4 of 14" in text for text in client.warnings)
    assert finite(client)


@pytest.mark.parametrize("preset", ["breast-dce-recon", "recon-cg-sense"])
def test_dead_coils_are_named_counted_and_left_out(oracle: Oracle, preset: str) -> None:
    before = bad_input(oracle, "dead_coils")
    dead = [replace(a, data=a.data * np.array([[1], [0], [1]], np.complex64)) for a in SCAN]
    client = oracle.accepted(*opening(preset), *dead, Close())
    assert any("without" in text and "signal" in text and ": 1" in text for text in client.warnings), client.warnings
    assert finite(client)
    wait_until(lambda: bad_input(oracle, "dead_coils") == before + 1)


def test_all_coils_dead_is_an_error_to_the_client_and_empty_images(oracle: Oracle) -> None:
    silent = [replace(a, data=0 * a.data) for a in SCAN]
    assert "no signal in any coil" in oracle.refused(*scan_with({}, *silent), outcome="with_errors")


def noise_told(client: Client) -> list[str]:
    return [text for text in client.texts if text.startswith("WRN") and "nothing but noise was found" in text]


@pytest.mark.parametrize("preset", ["breast-dce-recon", "recon-cg-sense"])
@pytest.mark.parametrize("level", [1e-12, 1.0, 1e9])
def test_noise_alone_is_told_counted_and_gives_finite_images_whatever_its_level(
    oracle: Oracle, preset: str, level: float
) -> None:
    """The samples of this scan are white noise; delays must not be found in it."""
    before = bad_input(oracle, "only_noise")
    scaled = [replace(a, data=(level * a.data).astype(np.complex64)) for a in SCAN]
    client = oracle.accepted(*opening(preset), *scaled, Close())
    assert not any("delays corrected" in text for text in client.texts)
    first, last = noise_told(client)
    assert "frame 0 slice 0: " in first
    assert f"in {STARS.n_frames} frames" in last
    assert len(client.images) == N_IMAGES
    assert finite(client)
    wait_until(lambda: bad_input(oracle, "only_noise") >= before + STARS.n_frames)


def test_an_object_under_strong_noise_is_not_taken_for_noise(oracle: Oracle) -> None:
    """A broad blob, clear in the centre of k-space only; frames are tiny, so that it has 13 times the mean power."""
    blobs = []
    for a in SCAN:
        k = np.linalg.norm(a.trajectory, axis=1)
        blobs.append(replace(a, data=(a.data + 12 * np.exp(-(k**2))).astype(np.complex64)))
    client = oracle.accepted(*scan_with({}, *blobs))
    assert not noise_told(client)
    assert finite(client)


def test_whole_spoke_that_never_came_is_told_counted_and_its_angle_goes_to_its_neighbours(oracle: Oracle) -> None:
    before = bad_input(oracle, "missing_readouts")
    lost = range(PER_FRAME + 4, PER_FRAME + 4 + STARS.n_partitions)
    kept = [a for i, a in enumerate(SCAN) if i not in lost]
    client = oracle.accepted(*scan_with({"gridding.angles": "gaps"}, *kept))
    assert any("frame 1 slice 0 is incomplete: 12 of 14" in text for text in client.warnings)
    assert any("frame 1 slice 0" in text and "density put right" in text for text in client.texts)
    assert len(client.images) == N_IMAGES
    assert finite(client)
    wait_until(lambda: bad_input(oracle, "missing_readouts") == before + STARS.n_partitions)


def test_whole_spoke_that_comes_twice_counts_once_and_every_copy_is_counted(oracle: Oracle) -> None:
    before = set_aside(oracle, "repeated")
    client = oracle.accepted(*scan_with({}, *SCAN[:4], *SCAN[2:4], *SCAN[4:]))
    assert any("repeated" in text for text in client.warnings)
    assert client.pixels == oracle.accepted(*scan_with({}, *SCAN)).pixels
    wait_until(lambda: set_aside(oracle, "repeated") == before + 2)
