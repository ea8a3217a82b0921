"""What options of the reconstruction cost in accuracy: `python -m benchmarks.recon_options` (needs the tests).

Partial Fourier along kz, coil compression and readout oversampling removal, each through the whole pipeline, from
acquisitions to magnitude images: relative error inside an object whose k-space is known exactly (the ellipses of
``tests/phantom.py``, 45 x 38; along z, 32 slices of boxes with a smooth phase). Golden-angle spokes above Nyquist, no
noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kstream.config import resolve
from kstream.mrd.messages import Image, new_acquisition
from kstream.pipeline import build_pipeline
from kstream.stream.runners import run_inline
from kstream.types import GOLDEN_ANGLE_RAD, Acquisition, EncodingLimit, Scan
from tests import phantom

NX, NY, NZ, N_SPOKES = 45, 38, 32, 89
FOV_MM = 200.0
SPOKES = phantom.spokes(np.arange(N_SPOKES) * GOLDEN_ANGLE_RAD, (NX, NY), NY / NX)


def along_z() -> np.ndarray:
    """Boxes of several widths, with a phase that is smooth: complex ``(z,)``."""
    z = np.arange(NZ) - NZ // 2
    boxes = 1.0 * (np.abs(z + 6) < 5) + 0.6 * (np.abs(z - 5) < 3) + 0.8 * (np.abs(z - 10) < 2)
    return np.asarray(boxes * np.exp(1j * (0.4 + 1.5 * z / NZ + 3 * (z / NZ) ** 2)))


def scan_of(n_coils: int, kz: np.ndarray) -> Scan:
    """A stack of stars whose partitions lie at `kz`; a single one is a slice."""
    nz = NZ if len(kz) > 1 else 1
    aspect = NY / NX
    return Scan(
        encoded_matrix=(2 * NX, 2 * NY, nz),
        recon_matrix=(NX, NY, nz),
        encoded_fov_mm=(2 * FOV_MM, 2 * FOV_MM * aspect, 2.0 * nz),
        recon_fov_mm=(FOV_MM, FOV_MM * aspect, 2.0 * nz),
        trajectory="goldenangle",
        limits={
            "kspace_encode_step_1": EncodingLimit(0, N_SPOKES - 1, 0),
            "kspace_encode_step_2": EncodingLimit(0, len(kz) - 1, int(-kz[0])),
        },
        n_coils=n_coils,
        user_parameters={"trajectory_units": "cycles_per_fov"},
    )


def acquisitions(n_coils: int, kz: np.ndarray) -> Iterator[Acquisition]:
    """Exact samples of all coils."""
    z = np.arange(NZ) - NZ // 2
    strength = np.exp(-2j * np.pi * np.outer(kz, z) / NZ) @ along_z() / np.sqrt(NZ) if len(kz) > 1 else np.ones(1)
    for spoke, k in enumerate(SPOKES):
        data = phantom.coil_kspace(k, (NX, NY), n_coils)
        for partition, factor in enumerate(strength):
            yield new_acquisition(
                np.asarray(data * factor, np.complex64),
                np.ascontiguousarray(k[:, :2]),
                counters={"kspace_encode_step_1": spoke, "kspace_encode_step_2": partition},
                read_dir=(1, 0, 0),
                phase_dir=(0, 1, 0),
                slice_dir=(0, 0, 1),
            )


def error(n_coils: int, kz: np.ndarray, *settings: str) -> float:
    """Of the magnitude images, inside the object, where coil maps are certain."""
    fixed = ("coils.calibration_frame=0", "trajectory.delay=off")
    config = resolve("recon-radial", settings=(*fixed, *settings)).config
    pipeline = build_pipeline(scan_of(n_coils, kz), config).pipeline
    made = run_inline(pipeline, list(acquisitions(n_coils, kz)))
    found = np.stack([item.data[0, 0] for item in made if isinstance(item, Image)])
    plane = np.abs(phantom.truth((NX, NY))) * np.linalg.norm(phantom.coil_maps((NX, NY), n_coils), axis=0)
    exact = plane * np.abs(along_z() if len(kz) > 1 else np.ones(1))[:, None, None]
    inside = np.broadcast_to(plane > 0.2 * plane.max(), exact.shape)
    return float(np.linalg.norm((found - exact)[inside]) / np.linalg.norm(exact[inside]))


def rows() -> Iterator[tuple[str, float]]:
    """What was done, and the error that it left."""
    whole = np.arange(NZ) - NZ // 2
    yield f"all {NZ} partitions", error(4, whole)
    for n in (24, 20):
        for method in ("zero", "homodyne", "pocs"):
            what = f"{n} of {NZ} partitions (kz {whole[-n]} to {whole[-1]}), partial_fourier.method={method}"
            yield what, error(4, whole[-n:], f"partial_fourier.method={method}")
    plane = np.zeros(1, int)
    yield "16 coils that see 4 different things", error(16, plane)
    for n in (8, 4, 3, 2):
        yield f"the same, coils.compress={n}", error(16, plane, f"coils.compress={n}")
    yield "readouts oversampled twice", error(4, plane)
    yield "the same, readouts.remove_oversampling=true", error(4, plane, "readouts.remove_oversampling=true")


def main() -> None:
    print("| what | error |\n|---|---|")
    for what, found in rows():
        print(f"| {what} | {found:.3f} |", flush=True)


if __name__ == "__main__":
    main()
