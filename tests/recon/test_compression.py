import numpy as np
import pytest

from kstream.recon.compression import CompressCoils, compression_matrix
from kstream.types import Complex, FrameEnd, Geometry, Notice, Readout

GEOMETRY = Geometry((5, 7, 3), (1.0, 1.0, 1.0))


def readouts(n: int, n_coils: int = 7, rank: int = 3) -> list[Readout]:
    """Readouts of coils that see only `rank` different things, and a little noise."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((n_coils, rank)) + 1j * rng.standard_normal((n_coils, rank))
    out = []
    for i in range(n):
        data = mix @ (rng.standard_normal((rank, 11)) + 1j * rng.standard_normal((rank, 11)))
        data += 1e-3 * rng.standard_normal((n_coils, 11))
        out.append(Readout(data.astype(np.complex64), np.zeros((11, 3), np.float32), 0, 0, 0, (i, 0), 0))
    return out


def energy(data: Complex) -> float:
    return float(np.linalg.norm(data))


def test_rows_are_orthonormal_and_keep_the_energy_that_there_is() -> None:
    data = [r.data for r in readouts(9)]
    matrix, kept = compression_matrix(data, 3)
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(3), atol=1e-5)
    assert kept > 0.9999
    assert energy(matrix @ data[4]) == pytest.approx(energy(data[4]), rel=1e-4)
    assert compression_matrix(data, 2)[1] < 0.99


def test_first_readouts_are_held_then_all_have_the_same_virtual_coils() -> None:
    items = readouts(8)
    stage = CompressCoils(3, 5)
    counts = [len(stage.push(item)) for item in items[:4]]
    released = stage.push(items[4])
    assert counts == [0, 0, 0, 0]
    assert isinstance(released[0], Notice)
    assert "7 coils compressed to 3, 100.00 %" in released[0].text
    later = [made for item in items[5:] for made in stage.push(item)]
    assert [r.data.shape for r in [*released[1:], *later]] == [(3, 11)] * 8
    assert [r.key for r in [*released[1:], *later]] == [r.key for r in items]
    products = [items[0].data.conj().T @ items[7].data, released[1].data.conj().T @ later[2].data]
    np.testing.assert_allclose(products[1], products[0], atol=0.05)


def test_end_of_a_frame_or_of_the_scan_ends_the_holding() -> None:
    end = FrameEnd(0, 0, 2, 2, 0, GEOMETRY)
    stage = CompressCoils(3, 50)
    out = [made for item in [*readouts(2), end] for made in stage.push(item)]
    assert [type(item) for item in out] == [Notice, Readout, Readout, FrameEnd]
    stage = CompressCoils(3, 50)
    assert stage.push(readouts(1)[0]) == []
    assert [type(item) for item in stage.finish()] == [Notice, Readout]


def test_scans_with_no_more_coils_pass_untouched() -> None:
    stage, items = CompressCoils(7, 3), readouts(4)
    assert [stage.push(item)[0] is item for item in items] == [True] * 4


def test_every_slice_has_virtual_coils_of_its_own() -> None:
    """Sequential slices, seen by different coils: those learnt on the first would keep nothing of the second."""
    stage, out = CompressCoils(3, 4), []
    items = readouts(6, n_coils=6)
    for slice_, seen in ((0, [1, 1, 1, 0.01, 0.01, 0.01]), (1, [0.01, 0.01, 0.01, 1, 1, 1])):
        for item in items:
            data = (item.data * np.array(seen)[:, None]).astype(np.complex64)
            out += stage.push(Readout(data, item.trajectory, 0, slice_, 0, item.key, 0))
    made = [item for item in out if isinstance(item, Readout)]
    assert [item.slice for item in made] == [0] * 6 + [1] * 6
    for slice_, coils in ((0, slice(0, 3)), (1, slice(3, 6))):
        kept = [energy(made[6 * slice_ + i].data) for i in range(6)]
        np.testing.assert_allclose(kept, [energy(item.data[coils]) for item in items], rtol=0.01)
    told = [item.text for item in out if isinstance(item, Notice)]
    assert [text[:8] for text in told] == ["slice 0:", "slice 1:"]
    assert all("99.9" in text or "100.00" in text for text in told)


def test_slices_that_interleave_release_what_is_theirs() -> None:
    stage = CompressCoils(3, 2)
    items = [Readout(r.data, r.trajectory, 0, i % 2, 0, r.key, 0) for i, r in enumerate(readouts(5))]
    out = [stage.push(item) for item in items]
    assert [len(made) for made in out] == [0, 0, 3, 3, 1]
    assert [made.slice for made in out[2][1:] + out[3][1:]] == [0, 0, 1, 1]
    end = FrameEnd(0, 1, 2, 2, 0, GEOMETRY)
    assert stage.push(end) == [end]


def test_partitions_outermost_wait_for_the_centre_of_kz() -> None:
    """At the edge of kz there is only noise, of other coils than see the object."""
    rng, stage, out = np.random.default_rng(5), CompressCoils(2, 3, centre=2), []
    for partition in range(5):
        for spoke, item in enumerate(readouts(4, n_coils=7, rank=2)):
            noise = rng.standard_normal((7, 11)) * [[0], [0], [0], [0], [1], [1], [1]]
            data = (item.data if partition == 2 else 0.1 * noise).astype(np.complex64)
            out.append(stage.push(Readout(data, item.trajectory, 0, 0, partition, (spoke, partition), 0)))
    assert [len(made) for made in out] == [0] * 10 + [12] + [1] * 9
    object_ = next(made for made in out[10] if isinstance(made, Readout) and made.partition == 2)
    exact = readouts(4, n_coils=7, rank=2)[0].data
    assert energy(object_.data) == pytest.approx(energy(exact), rel=1e-3)
