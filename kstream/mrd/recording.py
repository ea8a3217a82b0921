"""The ISMRMRD HDF5 layout: acquisitions in ``/GROUP/{xml,data}``, images in ``/GROUP/image_SERIES/...``.

Rows are read and written in blocks: one HDF5 call for each acquisition, as ``ismrmrd.Dataset`` makes, is 80 times
slower (290 against 24 000 acquisitions per second). Header fields are read by name, because some writers (KomaMRI)
store the C-aligned structure of 352 bytes instead of the packed 340.

Files are written beside their final name and renamed when they are whole, so a reader never finds half a recording.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import RecordingError
from ..types import Acquisition, Scan
from ._storage import Storage, deferred_signals, sync_folder
from .header import parse_header
from .images import SeriesSplitter
from .messages import (
    ACQUISITION_HEADER,
    IMAGE_DTYPES,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Image,
    Waveform,
    acquisition_fault,
)
from .meta import meta_from_xml, meta_to_xml

BLOCK = 64
"""Acquisitions that are read or written in one HDF5 call."""

ACQUISITION_ROW = np.dtype(
    [
        ("head", ACQUISITION_HEADER),
        ("traj", h5py.vlen_dtype(np.dtype("<f4"))),
        ("data", h5py.vlen_dtype(np.dtype("<f4"))),
    ]
)
WAVEFORM_ROW = np.dtype([("head", WAVEFORM_HEADER), ("data", h5py.vlen_dtype(np.dtype("<u4")))])
_BYTES = h5py.string_dtype("ascii")
_MAX_RATIO = 1032  # of deflate: a dataset that claims more than this times its stored bytes is damaged
_MAX_REASON = 1000  # characters; HDF5 takes attributes of less than 64 KiB
_IMAGE_GROUP = re.compile(r"image_(\d+)")
# The C++ library stores complex numbers as compounds with these names; h5py would say "r" and "i".
_COMPLEX = {
    np.dtype("<c8"): np.dtype([("real", "<f4"), ("imag", "<f4")]),
    np.dtype("<c16"): np.dtype([("real", "<f8"), ("imag", "<f8")]),
}


class Recording:
    """Reads the acquisitions of one measurement; use it in a ``with`` statement.

    Parameters
    ----------
    path : the HDF5 file.
    group : where the measurement lies in the file; None finds the only one.

    Raises
    ------
    RecordingError
        On entry, if the file is missing or damaged, or has no (or several) measurements.
    """

    def __init__(self, path: str | Path, group: str | None = None) -> None:
        self.path = Path(path)
        self.group = group
        self._file: h5py.File | None = None
        self._data: Any = None
        self._xml = b""

    def __enter__(self) -> Self:
        self._file = _open(self.path)
        try:
            with _hdf5_errors(self.path, "read"):
                self.group = self._find_group() if self.group is None else self.group
                self._data = self._acquisition_rows(self.group)
                self._xml = self._header_xml(self.group)
        except RecordingError:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def xml(self) -> bytes:
        """The header, without trailing NULs."""
        return self._xml

    @cached_property
    def scan(self) -> Scan:
        """The header in our words; raises ScanError or ProtocolError if it cannot be read."""
        return parse_header(self._xml)

    @property
    def n_acquisitions(self) -> int:
        return 0 if self._data is None else int(self._data.shape[0])

    @property
    def incomplete(self) -> str:
        """Why the writer called this recording incomplete; empty if it did not."""
        with _hdf5_errors(self.path, "read"):
            return "" if self._data is None else str(self._data.attrs.get("incomplete", ""))

    def acquisitions(self, block: int = BLOCK) -> Iterator[Acquisition]:
        """Give the acquisitions in stored order, reading `block` rows at a time.

        Raises
        ------
        RecordingError
            If a row cannot be read, or its samples contradict its header.
        """
        with _hdf5_errors(self.path, "read"):
            for start in range(0, self.n_acquisitions, block):
                rows = self._data[start : start + block]
                headers = _packed(rows["head"], ACQUISITION_HEADER, self.path)
                for i, (header, row) in enumerate(zip(headers, rows, strict=True)):
                    yield self._acquisition(start + i, header, row["traj"], row["data"])

    def _acquisition(self, number: int, header: Any, trajectory: NDArray[Any], data: NDArray[Any]) -> Acquisition:
        n_samples, n_coils = int(header["number_of_samples"]), int(header["active_channels"])
        n_dims = int(header["trajectory_dimensions"])
        if n_samples == 0 or n_coils == 0:
            raise RecordingError(
                f"acquisition {number} has {n_samples} samples of {n_coils} coils; both must be at least 1",
                where=f"{self.path}, group {self.group}",
                likely="the row was never written, or its header is damaged",
            )
        if data.size != 2 * n_coils * n_samples or trajectory.size != n_samples * n_dims:
            raise RecordingError(
                f"acquisition {number} has {data.size} data and {trajectory.size} trajectory values, but its header "
                f"promises {2 * n_coils * n_samples} and {n_samples * n_dims} "
                f"({n_samples} samples, {n_coils} coils, {n_dims} trajectory dimensions)",
                where=f"{self.path}, group {self.group}",
                likely="the writer changed the samples and left the header as it was",
            )
        samples = np.ascontiguousarray(data, "<f4").view("<c8").reshape(n_coils, n_samples)
        return Acquisition(header, samples, np.ascontiguousarray(trajectory, "<f4").reshape(n_samples, n_dims))

    def _find_group(self) -> str:
        groups = _groups(self._file)
        found = [name for name, group in groups.items() if "xml" in group or _has_acquisitions(group)]
        if len(found) == 1:
            return found[0]
        what = f"has {len(found)} measurements" if found else "has no acquisitions"
        if not found and any("header" in group and "attributes" in group for group in groups.values()):
            what = "has images only, no acquisitions"
        raise RecordingError(
            f"{self.path.name} {what}",
            where=self._contents(),
            hint="name the group" if found else "use a file with raw data",
        )

    def _contents(self) -> str:
        names = sorted(name for name in _groups(self._file) if name)
        return f"{self.path}, which holds {', '.join(names[:20]) or 'no groups'}"

    def _acquisition_rows(self, name: str) -> Any:
        group = _groups(self._file).get(name.strip("/"))
        if group is None or not _has_acquisitions(group):
            raise RecordingError(
                f"group {name!r} has no acquisitions",
                where=self._contents(),
                likely="it has another name, or its acquisitions were never written",
                hint="name another group with --group, or use another file",
            )
        rows = group["data"]
        if rows.ndim != 1 or rows.shape[0] == 0:
            raise RecordingError(
                f"{name}/data has shape {rows.shape}, expected one row or more of acquisitions",
                where=str(self.path),
                likely="the measurement was stopped before its first readout, or its writer was",
            )
        _check_size(rows, self.path)
        return rows

    def _header_xml(self, name: str) -> bytes:
        group = _groups(self._file)[name.strip("/")]
        if "xml" not in group:
            raise RecordingError(
                f"group {name!r} has no xml header, which says what was measured",
                where=str(self.path),
                likely="its writer never stored one, or was stopped before",
                hint="store the ISMRMRD header as the dataset xml of that group",
            )
        xml = np.ravel(group["xml"][()])[0]
        return (xml.encode() if isinstance(xml, str) else bytes(xml)).rstrip(b"\0")


class _Writer:
    """Writes an HDF5 file under a temporary name; the final name appears when the ``with`` block succeeds.

    The temporary file is locked while it is written. One that a killed process left behind is replaced.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.part")
        self._storage: Storage | None = None
        self._opened: h5py.File | None = None

    def __enter__(self) -> Self:
        with _hdf5_errors(self.path, "written"):
            self._storage = Storage(self._temporary)
        try:
            with self._writing():
                self._opened = h5py.File(self._storage, "w")
                self._begin(self._opened)
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is None or self._storage is None:
            return
        try:
            if error is None and self._is_worth_keeping():
                with self._writing():
                    self._opened.close()
                    self._storage.sync()
                    os.replace(self._temporary, self.path)
                    sync_folder(self.path.parent)
        finally:
            self._give_up()

    def _give_up(self) -> None:
        """Close what is open; the temporary file goes, unless it has its final name by now."""
        if self._opened is not None:
            with deferred_signals():
                self._opened.close()
            self._opened = None
        if self._storage is not None:
            if not self._storage.closed:
                with suppress(OSError):
                    if os.path.samestat(os.stat(self._temporary), os.fstat(self._storage.fileno())):
                        self._temporary.unlink()
            self._storage.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Around every use of HDF5: raise what the disk refused while the block ran, before what HDF5 made of it.

        No HDF5 object but the file may outlive the block, for closing one writes.
        """
        with _hdf5_errors(self.path, "written"), deferred_signals():
            try:
                yield
            finally:
                if self._storage is not None:
                    self._storage.raise_error()

    def _begin(self, file: h5py.File) -> None:
        raise NotImplementedError

    def _is_worth_keeping(self) -> bool:
        return True

    def _file(self) -> h5py.File:
        if self._opened is None:
            raise RecordingError(f"{self.path} is not open", hint="use the writer in a with statement")
        return self._opened


class RecordingWriter(_Writer):
    """Writes acquisitions as they come; use it in a ``with`` statement.

    If the block raises, nothing is left behind.

    Parameters
    ----------
    path : the HDF5 file; an existing one is replaced at the end.
    xml : the header.
    group : where the measurement lies in the file.
    """

    def __init__(self, path: str | Path, xml: bytes, group: str = "dataset") -> None:
        super().__init__(path)
        self.xml = xml
        self.group = group
        self.n_acquisitions = 0
        self.n_waveforms = 0

    def append(self, acquisitions: Sequence[Acquisition]) -> None:
        """Add a block of acquisitions; blocks of about 64 are fast.

        Raises
        ------
        RecordingError
            If an acquisition contradicts its header, or the file cannot be written.
        """
        if not acquisitions:
            return
        rows = np.empty(len(acquisitions), ACQUISITION_ROW)
        for i, acquisition in enumerate(acquisitions):
            fault = acquisition_fault(acquisition)
            if fault:
                raise RecordingError(f"cannot record an acquisition: {fault}", where=acquisition.place)
            rows["head"][i] = acquisition.header
            rows["traj"][i] = np.ascontiguousarray(acquisition.trajectory).reshape(-1)
            rows["data"][i] = np.ascontiguousarray(acquisition.data).reshape(-1).view("<f4")
        with self._writing():
            _extend(self._file()[self.group]["data"], rows)
        self.n_acquisitions += len(rows)

    def append_waveforms(self, waveforms: Sequence[Waveform]) -> None:
        """Add physiological signals; the file has ``GROUP/waveforms`` only if there are any.

        Raises
        ------
        RecordingError
            If the file cannot be written.
        """
        if not waveforms:
            return
        rows = np.zeros(len(waveforms), WAVEFORM_ROW)
        for i, waveform in enumerate(waveforms):
            for name in WAVEFORM_HEADER.names or ():
                rows["head"][name][i] = waveform.header[name]
            rows["head"]["channels"][i], rows["head"]["number_of_samples"][i] = waveform.data.shape
            rows["data"][i] = np.ascontiguousarray(waveform.data, "<u4").reshape(-1)
        with self._writing():
            _extend(self._waveforms(), rows)
        self.n_waveforms += len(rows)

    def note_text(self, name: str, text: str) -> None:
        """Keep what the client said beside header and data.

        Parameters
        ----------
        name : as other MRD servers call it: ``config_file`` (a name), ``config`` (a text), ``configAdditional`` (JSON).
        text : a NUL, which HDF5 has no place for, becomes a question mark.
        """
        with self._writing():
            self._file()[self.group].create_dataset(name, (1,), h5py.string_dtype())[0] = _storable(text)

    def mark_incomplete(self, reason: str) -> None:
        """Note in the file that the measurement ended early; ``Recording.incomplete`` reads it."""
        with self._writing():
            self._file()[self.group]["data"].attrs["incomplete"] = _storable(reason)[:_MAX_REASON]

    def _waveforms(self) -> Any:
        group = self._file()[self.group]
        if "waveforms" in group:
            return group["waveforms"]
        return group.create_dataset("waveforms", (0,), WAVEFORM_ROW, maxshape=(None,), chunks=(BLOCK,))

    def _begin(self, file: h5py.File) -> None:
        group = file.create_group(self.group)
        group.create_dataset("xml", (1,), _BYTES)[0] = self.xml.rstrip(b"\0")
        group.create_dataset("data", (0,), ACQUISITION_ROW, maxshape=(None,), chunks=(BLOCK,))


def write_recording(path: str | Path, xml: bytes, acquisitions: Iterable[Acquisition]) -> None:
    """Write a whole measurement as an ISMRMRD file that any MRD tool reads.

    Raises
    ------
    RecordingError
        If the file cannot be written, or an acquisition contradicts its header.
    """
    remaining = iter(acquisitions)
    with RecordingWriter(path, xml) as writer:
        while block := list(islice(remaining, BLOCK)):
            writer.append(block)


class ImageWriter(_Writer):
    """Writes images as they come, each series in its own group; use it in a ``with`` statement.

    A series whose shape or pixel type changes is split, since a dataset has one of each: see ``SeriesSplitter``.
    Without images no file is written. If the block raises, nothing is left behind.

    Parameters
    ----------
    path : the HDF5 file; an existing one is replaced at the end.
    group : the group that holds the series.
    """

    def __init__(self, path: str | Path, group: str = "images") -> None:
        super().__init__(path)
        self.group = group
        self.n_images = 0
        self._splitter = SeriesSplitter()

    def append(self, image: Image) -> None:
        """Add one image to its series.

        Raises
        ------
        RecordingError
            If the pixel type has no place in MRD, or the file cannot be written.
        """
        data_type = next((n for n, dtype in IMAGE_DTYPES.items() if dtype == image.data.dtype), None)
        if data_type is None or image.data.ndim != 4:
            raise RecordingError(f"cannot write an image of {image.data.dtype} and shape {image.data.shape}")
        image = self._splitter.split(image)
        header = np.array(image.header, IMAGE_HEADER)
        attributes = meta_to_xml(image.meta)
        header["data_type"] = data_type
        header["channels"], header["matrix_size"] = image.data.shape[0], image.data.shape[:0:-1]
        header["attribute_string_len"] = len(attributes)
        with self._writing():
            self._append(image.data, header, attributes)
        self.n_images += 1

    def _begin(self, file: h5py.File) -> None:
        file.create_group(self.group)

    def _is_worth_keeping(self) -> bool:
        return self.n_images > 0

    def _append(self, data: NDArray[Any], header: Any, attributes: bytes) -> None:
        series = self._series(int(header["image_series_index"]), data)
        for name, value in (("data", _stored(data)), ("header", header), ("attributes", attributes)):
            dataset = series[name]
            dataset.resize(dataset.shape[0] + 1, axis=0)
            dataset[-1] = value

    def _series(self, number: int, data: NDArray[Any]) -> Any:
        parent = self._file()[self.group]
        name = f"image_{number}"
        if name in parent:
            return parent[name]
        series = parent.create_group(name)
        dtype = _COMPLEX.get(data.dtype, data.dtype)
        series.create_dataset("data", (0, *data.shape), dtype, maxshape=(None, *data.shape), chunks=(1, *data.shape))
        series.create_dataset("header", (0,), IMAGE_HEADER, maxshape=(None,), chunks=(BLOCK,))
        series.create_dataset("attributes", (0,), _BYTES, maxshape=(None,), chunks=(BLOCK,))
        return series


def read_images(path: str | Path, group: str | None = None) -> dict[int, list[Image]]:
    """Read all images of a file, by series.

    Parameters
    ----------
    path : the HDF5 file.
    group : the group that holds the series; None finds the only one.

    Raises
    ------
    RecordingError
        If the file is missing or damaged, or has no images (or several groups of them).
    """
    path = Path(path)
    with _open(path) as file, _hdf5_errors(path, "read"):
        series: dict[str, dict[int, list[Image]]] = {}
        for name, candidate in _groups(file).items():
            parent, _, leaf = name.rpartition("/")
            match = _IMAGE_GROUP.fullmatch(leaf)
            if match and {"data", "header", "attributes"} <= candidate.keys():
                series.setdefault(parent, {})[int(match[1])] = _read_series(candidate, path)
    wanted = list(series) if group is None else [group.strip("/")]
    if len(wanted) != 1 or wanted[0] not in series:
        raise RecordingError(
            f"{path.name} has {len(series)} groups of images" if series else f"{path.name} has no images",
            where=str(path),
            likely=f"the file holds: {', '.join(sorted(series))}"
            if series
            else "no image came back, or it is raw data",
            hint="name the group" if series else "",
        )
    return series[wanted[0]]


def _read_series(group: Any, path: Path) -> list[Image]:
    for name in ("data", "header", "attributes"):
        _check_size(group[name], path)
    headers = _packed(group["header"][()], IMAGE_HEADER, path)
    pixels = np.ascontiguousarray(_numeric(group["data"][()]))
    attributes = group["attributes"][()]
    if not len(headers) == len(pixels) == len(attributes) or pixels.ndim != 5:
        raise RecordingError(
            f"{group.name} has {len(headers)} headers, {len(attributes)} attributes and data of shape {pixels.shape}, "
            "expected as many of each and (image, channels, z, y, x)",
            where=str(path),
        )
    images = []
    for header, data, text in zip(headers, pixels, attributes, strict=True):
        xml = text.encode() if isinstance(text, str) else bytes(text)
        images.append(Image(header, meta_from_xml(xml), data))
    return images


def _extend(dataset: Any, rows: NDArray[Any]) -> None:
    n = dataset.shape[0]
    dataset.resize(n + len(rows), axis=0)
    dataset[n:] = rows


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _stored(data: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(data).view(_COMPLEX.get(data.dtype, data.dtype))


def _numeric(stored: NDArray[Any]) -> NDArray[Any]:
    """Turn compounds of a real and an imaginary part into complex numbers."""
    if stored.dtype.names is None:
        return stored
    complex_dtype = np.dtype("<c8") if stored.dtype.itemsize == 8 else np.dtype("<c16")
    return stored.view(complex_dtype)


def _packed(stored: NDArray[Any], dtype: np.dtype[Any], path: Path) -> NDArray[Any]:
    """Copy headers into the packed layout, field by field, whatever the layout in the file."""
    headers = np.zeros(stored.shape, dtype)
    missing = set(dtype.names or ()) - set(stored.dtype.names or ())
    if missing:
        raise RecordingError(f"the headers lack the fields {', '.join(sorted(missing))}", where=str(path))
    for name in dtype.names or ():
        if dtype[name].names is None:
            headers[name] = stored[name]
        else:
            headers[name] = _packed(stored[name], dtype[name], path)
    return headers


def _check_size(dataset: Any, path: Path) -> None:
    """Refuse a dataset whose shape is damaged, before anything is allocated for it."""
    stored = min(dataset.id.get_storage_size(), path.stat().st_size)
    claimed = dataset.size * dataset.dtype.itemsize
    if claimed > _MAX_RATIO * stored:
        raise RecordingError(
            f"{dataset.name} claims {claimed} bytes, but {stored} are stored",
            where=str(path),
            likely="the file is damaged",
        )


def _has_acquisitions(group: Any) -> bool:
    data = group.get("data")
    return isinstance(data, h5py.Dataset) and {"head", "traj", "data"} <= set(data.dtype.names or ())


def _groups(file: Any) -> dict[str, Any]:
    """All groups of a file by path (without leading slash); the root is the empty path."""
    found = {"": file}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Group) else None)
    return found


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        what = f"{path.name} is not a file" if path.exists() else f"there is no file {path.name}"
        raise RecordingError(what, where=str(path), hint="check the path")
    with _hdf5_errors(path, "read"):
        return h5py.File(path, "r")


@contextmanager
def _hdf5_errors(path: Path, action: str) -> Iterator[None]:
    """Say which file failed when HDF5 or the operating system refuses.

    Damaged bytes come out of h5py as any of these errors: flipping bytes of a recording produced each of them.
    """
    try:
        yield
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        likely, hint = _EXPLAINED.get(number or 0) or _explained(str(error), path, action)
        reason = os.strerror(number) if number in _EXPLAINED else str(error)
        raise RecordingError(
            f"{path.name} cannot be {action}: {reason}", where=str(path), likely=likely, hint=hint
        ) from error


_EXPLAINED = {
    errno.EAGAIN: ("another program has it open for writing", "wait until that has ended, or close it there"),
    errno.ENOSPC: ("the disk is full", "free room, or name another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free room, or name another folder"),
    errno.EFBIG: ("it reached the largest size of a file (ulimit -f, or the file system)", "raise that limit"),
    errno.EROFS: ("the disk is mounted read-only", "name another folder"),
    errno.EACCES: ("this user may not do that here", "change the permissions, or name another place"),
    errno.EPERM: ("this user may not do that here", "change the permissions, or name another place"),
    errno.ENOENT: ("the folder does not exist", "make it, or check the path"),
    errno.ENOTDIR: ("a part of the path is a file", "check the path"),
    errno.EISDIR: ("it is a folder", "name a file"),
    errno.EIO: ("the disk is broken, or its server went away", "look at the system's log"),
}
"""Likely cause and way on for what operating systems say."""


def _explained(message: str, path: Path, action: str) -> tuple[str, str]:
    """Likely cause and way on for what HDF5 says."""
    if action == "written":
        return "HDF5 refused what was to be written", ""
    if "truncated file" in message:
        return "the file is cut short: a copy or a writer was interrupted", "copy it again, or use the original"
    if "already open for write" in message:
        return "its writer was killed before it closed the file", "h5clear -s FILE (of the HDF5 tools), on a copy"
    if "signature not found" in message:
        kind = "empty" if path.stat().st_size == 0 else "not HDF5"
        return f"the file is {kind}", "use an ISMRMRD HDF5 file"
    return "the file is damaged", "use the original, if this is a copy"
