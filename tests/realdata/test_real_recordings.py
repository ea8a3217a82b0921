"""Real and foreign raw data through `kstream import`, the server and back; needs the data beside the checkout."""

from pathlib import Path

import numpy as np
import pytest

from kstream.mrd.importing import ArraySource, import_arrays, mend_recording
from kstream.mrd.recording import Recording, write_recording
from kstream.recon.density import polar_weights
from kstream.recon.fourier import to_kspace
from kstream.serve.replay import replay
from kstream.types import Acquisition, Scan

DATA = Path(__file__).parents[3] / "shared" / "data" / "real"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the recordings in {DATA.name}/ beside the checkout")


def imported(name: str) -> tuple[Scan, list[Acquisition], str]:
    """Scan, acquisitions and the preset that suits them."""
    if name == "heart":
        source = ArraySource("rawdata", ("samples", "lines", "coils"), trajectory_key="k")
        return *import_arrays(DATA / "radial/heart_radial_25sp_12ch.mat", source), "recon-radial"
    if name == "phantom":
        source = ArraySource("", ("slices", "lines", "coils", "samples"), angles="full-circle", oversampling=2)
        return *import_arrays(DATA / "radial/phantom_radial_33sp_17ch_3slc.npy", source), "recon-radial"
    if name == "head":
        source = ArraySource("kspace", ("samples", "lines"), angles="half-circle")
        return *import_arrays(DATA / "radial/head_radial_256sp_1ch_SIMULATED.mat", source), "recon-radial"
    if name == "brain":
        source = ArraySource("", ("coils", "lines", "samples"))
        return *import_arrays(DATA / "cartesian/brain_cartesian_8ch_poisson.npy", source), "recon-cartesian"
    if name == "spiral":
        path = DATA / "ismrmrd/jemris_spiral_brain_1ch.h5"
        return *mend_recording(path, trajectory="spiral", trajectory_units="cycles_per_fov"), "recon-spiral"
    if name == "epi":
        path = DATA / "ismrmrd/koma_epi_brain_1ch.mrd"
        mended = mend_recording(path, trajectory="epi", trajectory_units="cycles_per_sample", fov_scale=1000)
        return *mended, "recon-cartesian"
    return *mend_recording(DATA / "ismrmrd/ref_generator_shepp_2ch_os2.h5"), "recon-cartesian"


def through_the_socket(name: str, port: int, folder: Path, **parameters: object) -> list[np.ndarray]:
    scan, acquisitions, preset = imported(name)
    write_recording(folder / f"{name}.h5", scan.xml, acquisitions)
    result = replay(folder / f"{name}.h5", port=port, preset=preset, parameters=parameters or None)
    assert not result.errors
    assert result.summary["received"] == len(acquisitions)
    assert result.summary["dropped"] == 0
    return [image.data[0, 0] for image in result.images[1]]


@pytest.mark.parametrize(
    ("name", "shape", "n_images"),
    [
        ("heart", (256, 256), 1),
        ("phantom", (128, 128), 3),
        ("head", (384, 384), 1),
        ("brain", (230, 180), 1),
        ("spiral", (220, 220), 1),
        ("epi", (102, 102), 1),
        ("shepp", (64, 64), 1),
    ],
)
def test_recordings_stream_to_images_with_the_object_inside(
    name: str, shape: tuple[int, int], n_images: int, port: int, tmp_path: Path
) -> None:
    images = through_the_socket(name, port, tmp_path)
    assert [image.shape for image in images] == [shape] * n_images
    for image in images:
        assert np.isfinite(image).all()
        ny, nx = shape
        middle = image[ny // 4 : -ny // 4, nx // 4 : -nx // 4].mean()
        corners = np.mean([image[:8, :8], image[:8, -8:], image[-8:, :8], image[-8:, -8:]])
        assert middle > 1.5 * corners


def test_heart_agrees_with_sigpy_on_the_same_samples(port: int, tmp_path: Path) -> None:
    sigpy, mr = pytest.importorskip("sigpy"), pytest.importorskip("sigpy.mri")
    (ours,) = through_the_socket("heart", port, tmp_path, **{"trajectory.delay": "off"})
    scan, acquisitions, _ = imported("heart")
    n = scan.recon_matrix[0]
    data = np.stack([a.data for a in acquisitions], axis=1)
    k = np.stack([a.trajectory for a in acquisitions]) * n
    weights = np.stack([polar_weights(np.pad(spoke, ((0, 0), (0, 1))), np.pi / len(k)) for spoke in k])
    images = sigpy.nufft_adjoint(data * weights, k[..., ::-1], oshape=(12, n, n), oversamp=2, width=6)
    kspace = to_kspace(images.astype(np.complex64))
    maps = mr.app.EspiritCalib(kspace, calib_width=24, kernel_width=6, crop=0.8, show_pbar=False).run()
    theirs = np.abs((maps.conj() * images).sum(0))
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.02


def test_imported_header_says_what_is_a_placeholder(tmp_path: Path) -> None:
    scan, acquisitions, _ = imported("heart")
    write_recording(tmp_path / "heart.h5", scan.xml, acquisitions)
    with Recording(tmp_path / "heart.h5") as recording:
        assert "field of view" in str(recording.scan.user_parameters["placeholders"])
        assert recording.scan.limit("kspace_encode_step_1").size == 25
