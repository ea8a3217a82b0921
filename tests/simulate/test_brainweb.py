"""BrainWeb's files: every form that it distributes, written here in its exact layout, gives the same head."""

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from kstream.errors import RecordingError
from kstream.output.nifti import write_nifti
from kstream.simulate.brain import brainweb
from kstream.simulate.brain.brainweb import BrainWebHead, read_brainweb
from kstream.simulate.brain.exam import simulate_brain_exam
from kstream.simulate.brain.head import Tissue
from kstream.simulate.brain.protocol import BrainProtocol
from kstream.types import Geometry

SHAPE = (7, 11, 9)  # z, y, x
START_MM, STEP_MM = (-4.0, -5.0, -3.0), (1.0, 1.0, 1.0)


def twelve_tissues() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 12, SHAPE).astype(np.uint8)


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes of BrainWeb have up to 57 million voxels; their layout does not depend on it."""
    monkeypatch.setattr(brainweb, "NORMAL", (5, 6, 4))
    monkeypatch.setattr(brainweb, "TWENTY", SHAPE)


def minc(path: Path, values: np.ndarray, high: int = 255) -> bytes:
    """MINC 1 as BrainWeb writes it: unsigned bytes in a NetCDF file, with the real values of 0 and 255 per slice."""
    with scipy.io.netcdf_file(str(path), "w") as file:
        for name, n, start in zip(("zspace", "yspace", "xspace"), SHAPE, reversed(START_MM), strict=True):
            file.createDimension(name, n)
            axis = file.createVariable(name, "d", ())
            axis.start, axis.step = start, 1.0
        image = file.createVariable("image", "b", ("zspace", "yspace", "xspace"))
        image.signtype, image.valid_range = "unsigned", np.array([0.0, high])
        for name, value in (("image-min", 0.0), ("image-max", 255.0)):
            file.createVariable(name, "d", ("zspace",))[:] = np.full(SHAPE[0], value)
        image[:] = np.rint(values * (high / 255.0)).astype(np.uint8).view(np.int8)
    return path.read_bytes()


def test_raw_bytes_packed_or_not_are_read(tmp_path: Path) -> None:
    values = twelve_tissues()
    for name, pack in (("s.rawb", bytes), ("s.rawb.gz", gzip.compress), ("s.rawb.bz2", bz2.compress)):
        (tmp_path / name).write_bytes(pack(values.tobytes()))
        head = read_brainweb(tmp_path / name)
        assert np.array_equal(head.tissues, values)
        assert head.step_mm == (0.5, 0.5, 0.5)
        assert head.start_mm == (-90.25, -126.25, -72.25)


def test_raw_shorts_hold_numbers_stretched_over_twelve_bits(tmp_path: Path) -> None:
    values = twelve_tissues()
    stretched = np.rint(values * (4095 / 255)).astype("<u2")
    assert stretched.max() == 177  # as BrainWeb's bone marrow
    (tmp_path / "subject04_crisp_v.raws.gz").write_bytes(gzip.compress(stretched.tobytes()))
    assert np.array_equal(read_brainweb(tmp_path / "subject04_crisp_v.raws.gz").tissues, values)


def test_minc_is_read_with_its_range_and_its_place(tmp_path: Path) -> None:
    values = twelve_tissues()
    packed = tmp_path / "subject04_crisp_v.mnc.gz"
    packed.write_bytes(gzip.compress(minc(tmp_path / "plain.mnc", values)))
    head = read_brainweb(packed)
    assert np.array_equal(head.tissues, values)
    assert (head.start_mm, head.step_mm) == (START_MM, STEP_MM)


def test_nifti_is_read_with_its_place(tmp_path: Path) -> None:
    values = twelve_tissues()
    geometry = Geometry((9, 11, 7), (9.0, 11.0, 7.0))
    write_nifti(tmp_path / "head.nii.gz", values, geometry)
    head = read_brainweb(tmp_path / "head.nii.gz")
    assert np.array_equal(head.tissues, values)
    assert [abs(step) for step in head.step_mm] == [1.0, 1.0, 1.0]


def test_the_normal_brain_has_ten_classes_of_its_own(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 10, (5, 6, 4)).astype(np.uint8)
    (tmp_path / "phantom_1.0mm_normal_crisp.rawb").write_bytes(values.tobytes())
    head = read_brainweb(tmp_path / "phantom_1.0mm_normal_crisp.rawb")
    assert head.step_mm == (1.0, 1.0, 1.0)
    assert head.start_mm == (-90.0, -126.0, -72.0)
    assert (head.tissues[values == 8] == Tissue.GREY).all()  # glia
    assert (head.tissues[values == 9] == Tissue.CONNECTIVE).all()
    assert (head.tissues[values < 8] == values[values < 8]).all()


def test_nifti_of_another_size_has_the_ten_classes(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 10, (6, 5, 4)).astype(np.int16)
    write_nifti(tmp_path / "head.nii", values, Geometry((4, 5, 6), (4.0, 5.0, 6.0)))
    head = read_brainweb(tmp_path / "head.nii")
    assert head.tissues.dtype == np.uint8
    assert (head.tissues[values == 8] == Tissue.GREY).all()


def test_intensities_are_no_tissues_however_large(tmp_path: Path) -> None:
    for value in (4096, 65535):
        (tmp_path / "s.raws").write_bytes(np.full(SHAPE, value, "<u2").tobytes())
        with pytest.raises(RecordingError, match="tissues"):
            read_brainweb(tmp_path / "s.raws")


def test_points_are_found_in_patient_axes() -> None:
    """BrainWeb counts x to the right and y to the front; patient coordinates to the left and to the back."""
    tissues = np.zeros(SHAPE, np.uint8)
    tissues[4, 8, 7] = Tissue.WHITE  # 3 mm right, 3 mm in front and 1 mm above the commissure
    head = BrainWebHead(tissues, START_MM, STEP_MM)
    centre = (-3.0, -3.0 - brainweb.COMMISSURE_MM, 1.0)
    grid = head.labels(Geometry((3, 5, 1), (3.0, 5.0, 1.0), centre))
    assert np.argwhere(grid).tolist() == [[0, 2, 1]]
    assert head.labels(Geometry((3, 5, 1), (3.0, 5.0, 1.0), centre), (2, 1, 1)).shape == (1, 5, 6)
    assert not head.labels(Geometry((3, 5, 1), (3.0, 5.0, 1.0), (0.0, 500.0, 0.0))).any()


def test_a_phantom_is_scanned_like_a_head() -> None:
    tissues = np.full((30, 40, 30), Tissue.WHITE, np.uint8)
    head = BrainWebHead(tissues, (-15.0, -40.0, -15.0), STEP_MM)
    protocol = BrainProtocol(matrix=(20, 24), n_slices=1, voxel_mm=(2.0, 2.0, 2.0), position_mm=(0.0, 0.0, 0.0))
    exam = simulate_brain_exam(protocol, 1, anatomy=head)
    assert set(np.unique(exam.head.tissues)) == {Tissue.BACKGROUND, Tissue.WHITE}


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("head.img", b"x", "no phantom that can be read"),
        ("head.rawb", b"\0" * 55, "neither"),
        ("head.rawb.gz", b"not gzip", "cannot read"),
        ("head.mnc", b"CDF\x01 cut short", "cannot read"),
        ("head.nii", b"x" * 400, "cannot read"),
        ("head.rawb", bytes(range(120)), "numbers from 0 to 119"),
    ],
)
def test_other_files_are_refused(name: str, content: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordingError, match=word):
        read_brainweb(tmp_path / name)


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot read"):
        read_brainweb(tmp_path / "nowhere.rawb")
