"""Recordings and image files: round trips, the `ismrmrd` package both ways, real files, and damage."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kstream.errors import ProtocolError, RecordingError
from kstream.mrd.codec import encode
from kstream.mrd.header import build_header
from kstream.mrd.messages import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Image,
    Waveform,
    new_acquisition,
)
from kstream.mrd.recording import (
    ACQUISITION_ROW,
    ImageWriter,
    Recording,
    RecordingWriter,
    read_images,
    write_recording,
)
from kstream.types import Acquisition, Scan

with warnings.catch_warnings():
    import ismrmrd

XML = build_header(Scan((22, 14, 5), (11, 7, 5), (220.0, 140.0, 5.0), (110.0, 70.0, 5.0), "radial", n_coils=3))
REAL = Path(__file__).parents[3] / "shared" / "data" / "real" / "ismrmrd"

needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings lie outside the repository")


def some_acquisitions(n: int = 13) -> list[Acquisition]:
    """Acquisitions of changing size, as a noise scan before the imaging makes them."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(n):
        n_samples, n_dims = (11, 0) if i == 0 else (7, 2)
        data = rng.standard_normal((3, n_samples, 2)).astype("f4").view("c8")[..., 0]
        path = rng.standard_normal((n_samples, n_dims)).astype("f4")
        made.append(new_acquisition(data, path, counters={"kspace_encode_step_1": i}, scan_counter=i, flags=1 << i))
    return made


def stored(path: Path, group: str | None = None, block: int = 64) -> list[Acquisition]:
    with Recording(path, group) as recording:
        return list(recording.acquisitions(block))


def assert_same(got: list[Acquisition], expected: list[Acquisition]) -> None:
    assert [encode(a) for a in got] == [encode(a) for a in expected]


def an_image(shape: tuple[int, ...] = (1, 1, 7, 11), dtype: str = "<f4", series: int = 2, index: int = 1) -> Image:
    header = np.zeros(1, IMAGE_HEADER)[0]
    header["version"], header["image_type"] = 1, 1
    header["image_series_index"], header["image_index"], header["position"] = series, index, (1.5, -2.0, 3.0)
    n = int(np.prod(shape))
    values = np.arange(n) * (1 + 2j) if np.dtype(dtype).kind == "c" else np.arange(n)
    return Image(header, {"Frame": str(index), "Dir": ["1", "0"]}, values.reshape(shape).astype(dtype))


# ---- recordings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 5, 13, 64])
def test_recording_round_trip_for_any_block(tmp_path: Path, block: int) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, iter(some_acquisitions()))
    assert_same(stored(path, block=block), some_acquisitions())
    with Recording(path) as recording:
        assert (recording.n_acquisitions, recording.group, recording.incomplete) == (13, "dataset", "")
        assert recording.xml == XML
        assert recording.scan.encoded_matrix == (22, 14, 5)


def test_recording_longer_than_a_block_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    sent = [new_acquisition(np.full((3, 5), i, "c8"), scan_counter=i) for i in range(150)]
    write_recording(path, XML, sent)
    assert_same(stored(path), sent)


def test_ismrmrd_reads_our_recording(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    sent = some_acquisitions()
    write_recording(path, XML, sent)
    with ismrmrd.Dataset(path, mode="r") as dataset:
        assert dataset.read_xml_header() == XML
        assert dataset.number_of_acquisitions() == 13
        got = [dataset.read_acquisition(i) for i in range(13)]
    with ismrmrd.File(str(path), "r") as file:
        container = file["dataset"]
        assert container.available() == ["header", "acquisitions"]
        assert container.header.acquisitionSystemInformation.receiverChannels == 3
        again = list(container.acquisitions)
    for ours, theirs, other in zip(sent, got, again, strict=True):
        np.testing.assert_array_equal(theirs.data, ours.data)
        np.testing.assert_array_equal(theirs.traj, ours.trajectory)
        np.testing.assert_array_equal(other.data, ours.data)
        assert bytes(theirs.getHead()) == ours.header.tobytes()


def test_we_read_what_ismrmrd_records(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    sent = some_acquisitions()
    with ismrmrd.Dataset(path, "other", mode="w") as dataset:
        dataset.write_xml_header(XML)
        for a in sent:
            dataset.append_acquisition(ismrmrd.Acquisition(a.header.tobytes(), a.data, a.trajectory))
    assert_same(stored(path), sent)
    with Recording(path) as recording:
        assert recording.group == "other"
        assert recording.xml == XML


def test_c_aligned_headers_are_read_by_name(tmp_path: Path) -> None:
    aligned = np.dtype([(n, ACQUISITION_HEADER[n]) for n in ACQUISITION_HEADER.names or ()], align=True)
    assert aligned.itemsize == 352
    dtype = np.dtype([("head", aligned), ("traj", ACQUISITION_ROW["traj"]), ("data", ACQUISITION_ROW["data"])])
    sent = some_acquisitions()
    rows = np.empty(len(sent), dtype)
    for i, a in enumerate(sent):
        for name in aligned.names or ():
            rows["head"][name][i] = a.header[name]
        rows["traj"][i], rows["data"][i] = a.trajectory.ravel(), a.data.ravel().view("<f4")
    path = tmp_path / "aligned.mrd"
    with h5py.File(path, "w") as file:
        file["dataset/data"] = rows
        file["dataset/xml"] = np.array([XML.decode()], h5py.string_dtype())
    assert_same(stored(path), sent)


def test_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with RecordingWriter(path, XML) as writer:
        writer.append(some_acquisitions())
        assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]


def test_failed_recording_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions(2))
    broken = some_acquisitions(4)
    broken[3].data = broken[3].data[:, 1:]
    with pytest.raises(RecordingError) as caught:
        write_recording(path, XML, broken)
    assert "(3, 6)" in caught.value.what
    assert "scan_counter 3" in caught.value.where
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]
    assert_same(stored(path), some_acquisitions(2))


def test_recording_that_ended_early_says_so(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with RecordingWriter(path, XML) as writer:
        writer.append(some_acquisitions())
        writer.mark_incomplete("the peer went away")
    with Recording(path) as recording:
        assert recording.incomplete == "the peer went away"


def test_header_that_hdf5_cannot_store_is_a_recording_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="embedded NULLs"):
        write_recording(tmp_path / "scan.h5", b"<a>\0</a>", some_acquisitions())
    assert list(tmp_path.iterdir()) == []


def test_writing_where_there_is_no_folder_is_a_recording_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot be written"):
        write_recording(tmp_path / "none" / "scan.h5", XML, some_acquisitions())


def test_appending_outside_of_with_is_a_recording_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="not open"):
        RecordingWriter(tmp_path / "scan.h5", XML).append(some_acquisitions())


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"no file gone\.h5"):
        stored(tmp_path / "gone.h5")


def test_file_that_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.h5"
    path.write_bytes(b"not hdf5" * 100)
    with pytest.raises(RecordingError) as caught:
        stored(path)
    assert "not HDF5" in caught.value.likely


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions())
    whole = path.read_bytes()
    for kept in (100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(RecordingError):
            stored(path)


def test_damaged_rows_are_refused_and_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions())
    whole = path.read_bytes()
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(40):
        damaged = bytearray(whole)
        at = int(rng.integers(0, len(whole) - 64))
        damaged[at : at + 64] = rng.bytes(64)
        path.write_bytes(damaged)
        try:
            stored(path)
        except RecordingError:
            refused += 1
    assert refused > 0


def change_rows(path: Path, change: Any) -> None:
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][:]
        change(rows)
        file["dataset/data"][:] = rows


def test_ragged_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions())

    def cut(rows: Any) -> None:
        rows["data"][5] = rows["data"][5][:-2]

    change_rows(path, cut)
    with Recording(path) as recording:
        reader = recording.acquisitions()
        assert_same([next(reader) for _ in range(5)], some_acquisitions()[:5])
        with pytest.raises(RecordingError, match=r"acquisition 5 has 40 data .* promises 42"):
            next(reader)


def test_ragged_trajectory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions())

    def grow(rows: Any) -> None:
        rows["head"]["trajectory_dimensions"][6] = 3

    change_rows(path, grow)
    with pytest.raises(RecordingError, match="acquisition 6 has 42 data and 14 trajectory values"):
        stored(path)


def test_row_that_was_never_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions())
    with h5py.File(path, "r+") as file:
        file["dataset/data"].resize(15, axis=0)
    with pytest.raises(RecordingError, match="acquisition 13 has 0 samples"):
        stored(path)


@pytest.mark.parametrize("kind", ["acquisitions", "images"])
def test_dataset_that_claims_more_than_the_file_holds_is_refused_before_allocation(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "scan.h5"
    if kind == "images":
        with ImageWriter(path) as writer:
            writer.append(an_image())
        with h5py.File(path, "r+") as file:
            file["images/image_2/data"].resize(2**40, axis=0)
    else:
        write_recording(path, XML, some_acquisitions())
        with h5py.File(path, "r+") as file:
            file["dataset/data"].resize(2**40, axis=0)
    with pytest.raises(RecordingError, match=r"claims \d+ bytes"):
        read_images(path) if kind == "images" else stored(path)


def test_recording_without_acquisitions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, [])
    with pytest.raises(RecordingError, match="expected one row or more"):
        stored(path)
    with h5py.File(path, "w") as file:
        file["dataset/xml"] = [XML]
    with pytest.raises(RecordingError, match="no acquisitions"):
        stored(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(RecordingError, match="has no acquisitions"):
        stored(path)


def test_recording_without_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions())
    with h5py.File(path, "r+") as file:
        del file["dataset/xml"]
    with pytest.raises(RecordingError, match="no xml header"):
        stored(path)


def test_file_of_images_only_says_so(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    with ImageWriter(path) as writer:
        writer.append(an_image())
    with pytest.raises(RecordingError) as caught:
        stored(path)
    assert "images only" in caught.value.what
    assert "images/image_2" in caught.value.where


def test_one_of_several_measurements_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions())
    with h5py.File(path, "r+") as file:
        file.copy("dataset", "second")
    with pytest.raises(RecordingError, match="2 measurements") as caught:
        stored(path)
    assert "dataset, second" in caught.value.where
    assert_same(stored(path, "second"), some_acquisitions())
    with pytest.raises(RecordingError, match="'third' has no acquisitions"):
        stored(path, "third")


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<u2", "<f4", "<c8"])
def test_image_round_trip(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "images.h5"
    sent = [an_image(dtype=dtype, index=i) for i in (1, 2, 3)]
    with ImageWriter(path) as writer:
        for image in sent:
            writer.append(image)
        assert writer.n_images == 3
    got = read_images(path)
    assert list(got) == [2]
    for ours, theirs in zip(sent, got[2], strict=True):
        assert theirs.data.dtype == ours.data.dtype
        assert theirs.meta == ours.meta
        assert encode(theirs) == encode(ours)


@pytest.mark.parametrize("dtype", ["<u2", "<f4", "<c8"])
def test_ismrmrd_dataset_reads_our_images(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "images.h5"
    with ImageWriter(path) as writer:
        writer.append(an_image((1, 5, 7, 11), dtype))
        writer.append(an_image((1, 5, 7, 11), dtype, index=2))
    with ismrmrd.Dataset(path, "images", mode="r") as dataset:
        assert dataset.number_of_images("image_2") == 2
        image = dataset.read_image("image_2", 1)
    np.testing.assert_array_equal(image.data, an_image((1, 5, 7, 11), dtype).data)
    assert dict(image.meta) == {"Frame": "2", "Dir": ["1", "0"]}
    assert tuple(image.getHead().matrix_size) == (11, 7, 5)


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
def test_ismrmrd_file_reads_our_images(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "images.h5"
    image = an_image(dtype=dtype)
    image.meta["Unit"] = "\N{MICRO SIGN}m"
    with ImageWriter(path) as writer:
        writer.append(image)
    with ismrmrd.File(str(path), "r") as file:
        assert file.find_images() == {"images/image_2"}
        (got,) = list(file["images/image_2"].images)
    np.testing.assert_array_equal(got.data, image.data)
    assert dict(got.meta) == image.meta


@pytest.mark.parametrize("dtype", ["u2", "f4", "c8"])
def test_we_read_images_that_ismrmrd_wrote(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "images.h5"
    pixels = np.arange(5 * 7 * 11).reshape(5, 7, 11).astype(dtype)
    image = ismrmrd.Image.from_array(pixels, transpose=False)
    image.meta = ismrmrd.Meta({"Frame": "4"})
    with ismrmrd.Dataset(path, "out", mode="w") as dataset:
        dataset.append_image("image_3", image)
    ((got,),) = read_images(path).values()
    np.testing.assert_array_equal(got.data[0], pixels)
    assert got.data.dtype == dtype
    assert got.meta == {"Frame": "4"}


def test_series_that_changes_shape_or_type_is_split(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    with ImageWriter(path) as writer:
        for image in (
            an_image(),
            an_image((1, 1, 5, 11)),
            an_image(index=2),
            an_image(dtype="<u2"),
            an_image(series=7),
        ):
            writer.append(image)
    got = read_images(path)
    assert {n: [(i.data.shape, i.data.dtype.str) for i in images] for n, images in got.items()} == {
        2: [((1, 1, 7, 11), "<f4")] * 2,
        1002: [((1, 1, 5, 11), "<f4")],
        2002: [((1, 1, 7, 11), "<u2")],
        7: [((1, 1, 7, 11), "<f4")],
    }
    assert all(int(i.header["image_series_index"]) == n for n, images in got.items() for i in images)


def test_no_images_leave_no_file(tmp_path: Path) -> None:
    with ImageWriter(tmp_path / "images.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


def write_one_and_fail(writer: ImageWriter) -> None:
    writer.append(an_image())
    raise ProtocolError("elsewhere")


def test_failed_block_leaves_no_images(tmp_path: Path) -> None:
    writer = ImageWriter(tmp_path / "images.h5")
    with pytest.raises(ProtocolError), writer:
        write_one_and_fail(writer)
    assert list(tmp_path.iterdir()) == []


def test_image_type_without_place_in_mrd_is_refused(tmp_path: Path) -> None:
    with ImageWriter(tmp_path / "images.h5") as writer, pytest.raises(RecordingError, match="int64"):
        writer.append(an_image(dtype="<i8"))


def test_reading_images_from_raw_data_says_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions())
    with pytest.raises(RecordingError, match="has no images"):
        read_images(path)


def test_one_of_several_image_groups_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    with ImageWriter(path, "first") as writer:
        writer.append(an_image())
    with h5py.File(path, "r+") as file:
        file.copy("first", "second")
    with pytest.raises(RecordingError, match="2 groups of images"):
        read_images(path)
    assert list(read_images(path, "second")) == [2]


def test_image_group_with_missing_headers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    with ImageWriter(path) as writer:
        writer.append(an_image())
    with h5py.File(path, "r+") as file:
        file["images/image_2/header"].resize(0, axis=0)
    with pytest.raises(RecordingError, match="0 headers, 1 attributes"):
        read_images(path)


# ---- files of others -------------------------------------------------------------------------------------------------


@needs_real_files
@pytest.mark.parametrize(
    ("name", "n_acquisitions", "n_coils", "n_samples", "n_dims", "trajectory", "matrix"),
    [
        ("ref_generator_shepp_2ch_os2.h5", 64, 2, 128, 0, "cartesian", (128, 64, 1)),
        ("jemris_spiral_brain_1ch.h5", 16, 1, 4940, 3, "other", (220, 220, 1)),
        ("koma_epi_brain_1ch.mrd", 101, 1, 101, 2, "other", (101, 101, 1)),
    ],
)
def test_recordings_of_other_writers_are_read(
    name: str,
    n_acquisitions: int,
    n_coils: int,
    n_samples: int,
    n_dims: int,
    trajectory: str,
    matrix: tuple[int, int, int],
) -> None:
    with Recording(REAL / name) as recording:
        scan, got = recording.scan, list(recording.acquisitions(block=17))
        assert recording.n_acquisitions == n_acquisitions
    assert len(got) == n_acquisitions
    assert (scan.trajectory, scan.encoded_matrix) == (trajectory, matrix)
    assert got[-1].data.shape == (n_coils, n_samples)
    assert got[-1].trajectory.shape == (n_samples, n_dims)
    assert np.isfinite(got[-1].data).all()
    assert np.abs(got[-1].data).max() > 0
    assert all(len(encode(a)) == 342 + a.data.nbytes + a.trajectory.nbytes for a in got)


@needs_real_files
def test_c_aligned_koma_file_counts_its_lines() -> None:
    got = stored(REAL / "koma_epi_brain_1ch.mrd")
    assert [a.counter("kspace_encode_step_1") for a in got] == list(range(101))
    assert np.abs(np.concatenate([a.trajectory for a in got])).max() == pytest.approx(0.5)


@needs_real_files
def test_reference_generator_file_equals_what_ismrmrd_reads() -> None:
    path = REAL / "ref_generator_shepp_2ch_os2.h5"
    with ismrmrd.Dataset(path, mode="r") as dataset:
        theirs = [dataset.read_acquisition(i) for i in (0, 1, 63)]
    ours = stored(path)
    for number, other in zip((0, 1, 63), theirs, strict=True):
        np.testing.assert_array_equal(ours[number].data, other.data)
        assert ours[number].header.tobytes() == bytes(other.getHead())


# ---- full disks, interrupts, other writers ---------------------------------------------------------------------------


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from kstream.errors import RecordingError
from kstream.mrd.messages import IMAGE_HEADER, Image, new_acquisition
from kstream.mrd.recording import ImageWriter, RecordingWriter
path, kind = Path(sys.argv[1]), sys.argv[2]
block = [new_acquisition(np.ones((3, 501), "c8"), scan_counter=i) for i in range(7)]
image = Image(np.zeros(1, IMAGE_HEADER)[0], {}, np.ones((1, 1, 71, 113), "f4"))
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with RecordingWriter(path, b"<a/>") if kind == "acquisitions" else ImageWriter(path) as writer:
            for _ in range(20):
                writer.append(block if kind == "acquisitions" else image)
        print("written")
    except RecordingError as error:
        print(error.what)
"""


@pytest.mark.parametrize("kind", ["acquisitions", "images"])
def test_35_disk_that_is_full_at_any_byte_is_a_recording_error_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    """HDF5 itself dies of SIGSEGV when it closes a file that could not be flushed."""
    limits = [0, 1, 95, 97, 800, 2049, 4097, 20_000, 25_003, 100_001, 500_009]
    command = [sys.executable, "-c", FULL, str(tmp_path / "x.h5"), kind, *map(str, limits)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines() == ["x.h5 cannot be written: File too large"] * len(limits)
    assert list(tmp_path.iterdir()) == []


def test_35_write_that_the_disk_refuses_once_is_an_error_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions(2))
    calls = 0
    real = os.pwrite

    def refuse_once(descriptor: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse_once)
    with pytest.raises(RecordingError, match="Input/output error") as caught:
        write_recording(path, XML, some_acquisitions())
    assert "broken" in caught.value.likely
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]
    assert_same(stored(path), some_acquisitions(2))


def test_disk_that_refuses_the_last_sync_gives_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RecordingError, match="No space left") as caught:
        write_recording(tmp_path / "scan.h5", XML, some_acquisitions())
    assert caught.value.likely == "the disk is full"
    assert list(tmp_path.iterdir()) == []


INTERRUPTED = """
import random, signal, sys
import numpy as np
from kstream.mrd.messages import new_acquisition
from kstream.mrd.recording import RecordingWriter
block = [new_acquisition(np.ones((3, 2501), "c8"), scan_counter=i) for i in range(7)]
random.seed(1)
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
n = 0
for _ in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.02))
        with RecordingWriter(sys.argv[1], b"<a/>") as writer:
            while True:
                writer.append(block)
    except KeyboardInterrupt:
        n += 1
print(n)
"""


def test_interrupt_at_any_moment_leaves_nothing_and_never_crashes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "x.h5")]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (0, "60\n", "")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_replaced_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import os, sys; from kstream.mrd.recording import RecordingWriter\n"
        "RecordingWriter(sys.argv[1], b'<a/>').__enter__(); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "scan.h5"
    assert subprocess.run([sys.executable, "-c", code, path], check=False, timeout=60).returncode == -9
    (tmp_path / ".scan.h5.part").write_bytes(b"left" * 5000)
    write_recording(path, XML, some_acquisitions())
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]
    assert_same(stored(path), some_acquisitions())
    assert ".scan.h5.part was left behind by a writer that was killed; it is replaced" in caplog.text


def test_second_writer_of_one_file_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with RecordingWriter(path, XML) as writer:
        writer.append(some_acquisitions(3))
        with pytest.raises(RecordingError) as caught:
            write_recording(path, XML, some_acquisitions())
        assert "another program has it open" in caught.value.likely
    assert_same(stored(path), some_acquisitions(3))


def test_file_that_another_program_writes_is_called_locked_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    code = (
        "import sys, h5py\n"
        "with h5py.File(sys.argv[1], 'w') as file: file['a'] = 1; file.flush(); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RecordingError) as caught:
            stored(path)
        other.communicate(b"")
    assert "another program has it open for writing" in caught.value.likely
    assert "cut short" not in str(caught.value)


def test_38_truncated_empty_and_foreign_files_have_different_causes(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, some_acquisitions())
    whole = path.read_bytes()
    causes = []
    for content in (whole[:-9], b"", b"not hdf5" * 100):
        path.write_bytes(content)
        with pytest.raises(RecordingError) as caught:
            stored(path)
        causes.append(caught.value.likely)
    assert causes == [
        "the file is cut short: a copy or a writer was interrupted",
        "the file is empty",
        "the file is not HDF5",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_35_folder_without_permission_says_so(tmp_path: Path) -> None:
    code = (
        "import os, sys; from kstream.mrd.recording import write_recording\n"
        "os.chdir(sys.argv[1]); os.setuid(65534)\n"
        "try: write_recording('x.h5', b'<a/>', [])\n"
        "except Exception as error: print(error)"
    )
    tmp_path.chmod(0o555)
    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, timeout=60
    )
    assert "Permission denied" in found.stdout
    assert "this user may not do that here" in found.stdout


def test_waveforms_are_written_where_ismrmrd_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    header = np.zeros(1, WAVEFORM_HEADER)[0]
    header["waveform_id"], header["sample_time_us"] = 3, 2.5
    data = np.arange(15, dtype=np.uint32).reshape(3, 5)
    with RecordingWriter(path, XML) as writer:
        writer.append(some_acquisitions(1))
        writer.append_waveforms([Waveform(header, data)])
        writer.append_waveforms([])
        writer.append_waveforms([Waveform(header, data[:2] + np.uint32(9))] * 2)
    with ismrmrd.Dataset(path, mode="r") as dataset:
        assert dataset.number_of_waveforms() == 3
        np.testing.assert_array_equal(dataset.read_waveform(0).data, data)
        last = dataset.read_waveform(2)
    np.testing.assert_array_equal(last.data, data[:2] + 9)
    assert (last.waveform_id, last.sample_time_us, last.channels, last.number_of_samples) == (3, 2.5, 2, 5)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("no xml", ("no xml header", "never stored one")),
        ("no rows", ("expected one row or more", "before its first readout")),
        ("no data", ("group 'dataset' has no acquisitions", "--group")),
        ("folder", ("scan.h5 is not a file", "check the path")),
        ("other program", ("has no acquisitions", "holds no groups")),
    ],
)
def test_38_recording_that_cannot_be_replayed_says_why(tmp_path: Path, damage: str, words: tuple[str, str]) -> None:
    path = tmp_path / "scan.h5"
    write_recording(path, XML, [] if damage == "no rows" else some_acquisitions())
    with h5py.File(path, "r+") as file:
        if damage in ("no xml", "no data"):
            del file["dataset"]["xml" if damage == "no xml" else "data"]
        elif damage == "other program":
            del file["dataset"]
            file["x"] = 1
    if damage == "folder":
        path.unlink()
        path.mkdir()
    with pytest.raises(RecordingError) as caught:
        stored(path)
    assert all(word in str(caught.value) for word in words)
