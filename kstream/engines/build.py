"""``kstream compile``: build an engine, hold it to the gate, time it, and keep it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..errors import ConfigError, ModelError, ShapeError
from ..models.bundle import Bundle
from . import artifact, backends, machine
from .array_gate import ArrayReference, examine_arrays, sizes_up_to
from .array_stages import ArrayNetwork, family, takes_arrays
from .artifact import MANIFEST, PROOF, Key, Manifest
from .calibrate import input_of
from .engine import MAX_BATCH
from .gate import Reference, Verdict, examine
from .profile import Plan, Profile, Space, times

ROUNDS = 3
MAX_SIDE = 1024
MAX_TOKENS = 2**20
BUILDING = ".kstream-building-"
"""Begins the names of the folders in which engines are built; one that nobody holds is of a build that was killed."""

NO_ROOM_BYTES = 1 << 20


def plan_for(
    bundle: Bundle,
    engine: str,
    precision: str,
    device: str,
    shapes: tuple[Space, ...],
    batches: tuple[int, ...],
    transform: str = "fft",
    is_frozen: bool = True,
) -> Plan:
    """A plan whose values are known to make sense together.

    Parameters
    ----------
    precision : ``auto``: bfloat16 where engine and device have it, else float32.
    shapes : none: that of the bundle's example. Of a network with several inputs: the most samples or lines, one size.

    Raises
    ------
    ModelError : the library lacks the precision or the device, or does not hold networks with several inputs, or those
        with the FFT inside.
    ShapeError : a shape has another number of axes than the network's input, or a size out of range.
    """
    has_arrays = takes_arrays(bundle)
    if has_arrays:
        backends.demand_arrays(engine, bundle.info.name)
        if transform != "fft":
            raise ModelError(
                f"{bundle.info.name} has no transform to write as {transform}", hint="leave --transform away"
            )
    if precision == "auto":
        has_bf16 = "bf16" in backends.backend(engine).PRECISIONS and machine.has_fast_bf16(device)
        precision = "bf16" if has_bf16 else "fp32"
    if has_arrays:
        profile, is_frozen = _array_profile(bundle, shapes), engine == "onnxruntime"
    else:
        profile = _patch_profile(bundle, shapes, batches)
    plan = Plan(engine, precision, device, profile, transform, is_frozen)
    backends.check(plan)
    if not has_arrays:
        backends.demand_no_fft(plan, bundle.info.name, bundle.build(), bundle.example()[0].shape[2:])
    return plan


def _array_profile(bundle: Bundle, shapes: tuple[Space, ...]) -> Profile:
    """The most tokens; a scan has one subject, so there is no batch, and weights are not packed for a size."""
    known = family(bundle)
    shapes = shapes or ((known.most,),)
    if len(shapes) > 1 or len(shapes[0]) != 1 or not 0 < shapes[0][0] <= MAX_TOKENS:
        raise ShapeError(
            f"{bundle.info.name} is compiled for one size, the most {known.unit} of a scan, from 1 to {MAX_TOKENS}",
            where="--shape " + " ".join(map(times, shapes)),
            hint=f"--shape {known.most}",
        )
    return Profile((1,), shapes, 0)


def _patch_profile(bundle: Bundle, shapes: tuple[Space, ...], batches: tuple[int, ...]) -> Profile:
    n_channels, n_axes = input_of(bundle)
    shapes = shapes or (bundle.example()[0].shape[2:],)
    for shape in shapes:
        if len(shape) != n_axes - 2 or not all(0 < n <= MAX_SIDE for n in shape):
            raise ShapeError(
                f"a patch of {times(shape)} does not suit {bundle.info.name}",
                likely=f"it takes {n_axes - 2} sizes, each from 1 to {MAX_SIDE}",
                hint="--shape 24x320x320",
            )
    return Profile(tuple(sorted(set(batches))), tuple(dict.fromkeys(shapes)), n_channels)


def buckets(text: str) -> tuple[int, ...]:
    """Batches to build for: ``1:8`` gives 1, 2, 4, 8 (those between are padded up), ``1,3,6`` just these.

    Raises
    ------
    ConfigError : not such a text, or beyond what one run of a network may hold (`MAX_BATCH`).
    """
    try:
        if ":" in text:
            low, high = (int(part) for part in text.split(":"))
            sizes = sorted({low, high, *(2**i for i in range(1, high.bit_length()) if low < 2**i < high)})
        else:
            sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if not 1 <= sizes[0] <= sizes[-1] <= MAX_BATCH:
        raise ConfigError(
            f"cannot understand batch {text[:40]!r}", hint=f"--batch 1:{MAX_BATCH}, --batch 1, or --batch 1,2,6"
        )
    return tuple(sizes)


def space(text: str) -> Space:
    """The shape of a patch: ``24x320x320`` is 24 slices of 320 x 320.

    Raises
    ------
    ConfigError : not such a text.
    """
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ConfigError(f"cannot understand shape {text[:40]!r}", hint="--shape 24x320x320") from None


def compile_engine(bundle: Bundle, plan: Plan, output: Path | None = None) -> tuple[Path, Manifest]:
    """Build, check, time and keep an engine; one that does not pass is not kept.

    Parameters
    ----------
    output : folder for the engine; None: the cache.

    Returns
    -------
    Its folder and manifest.

    Raises
    ------
    ModelError : it cannot be built, or does not reproduce the reference.
    """
    bare = Manifest(Key.here(bundle, plan), plan, Verdict(plan.precision, ()), command_for(bundle, plan, output))
    name = f"{plan.engine}-{plan.precision}-{bare.slot}"
    folder = output or artifact.folder_of(bundle) / name
    _check_free(folder)
    try:
        with _workshop(folder.parent) as made:
            building = made / name
            building.mkdir()
            manifest = _build(bundle, bare, building)
            artifact.write_text(building / MANIFEST, manifest.to_json())
            _replace(folder, building, made / "old")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _not_built(plan, folder, error) from error
    return folder, manifest


def _build(bundle: Bundle, bare: Manifest, building: Path) -> Manifest:
    """Write, examine and time an engine; its manifest."""
    begin, plan = time.perf_counter(), bare.plan
    make = _build_arrays if takes_arrays(bundle) else _build_patches
    build_s, verdict, times_ms = make(bundle, bare, building, begin)
    files = {path.name: artifact.hash_file(path) for path in sorted(building.iterdir())}
    verdict.demand(artifact.name_of(plan))
    return dataclasses.replace(bare, verdict=verdict, files=files, build_s=round(build_s, 2), times_ms=times_ms)


_Built = tuple[float, Verdict, dict[str, float]]


def _build_patches(bundle: Bundle, bare: Manifest, building: Path, begin: float) -> _Built:
    """Seconds, verdict, and milliseconds by ``batch x shape``."""
    plan = bare.plan
    backends.backend(plan.engine).build(bundle.build(), plan, building)
    engine = artifact.open_engine(bundle, building, bare)
    build_s = time.perf_counter() - begin
    reference = Reference(bundle)
    reference.check_stored()
    every_batch = range(1, plan.profile.batches[-1] + 1)  # also those that are padded
    verdict = examine(engine, reference, every_batch, plan.profile.shapes)
    inputs, logits = reference.batch(1, min(plan.profile.shapes))
    save_file({"kspace": np.ascontiguousarray(inputs), "logits": logits.astype(np.float32)}, building / PROOF)
    rng, runs = np.random.default_rng(0), dict[str, Callable[[], Any]]()
    for shape in plan.profile.shapes:
        for n_patches in plan.profile.batches:
            batch = rng.standard_normal((n_patches, plan.profile.n_channels, *shape), np.float32)
            runs[f"{n_patches}x{times(shape)}"] = functools.partial(engine.run, batch)
    return build_s, verdict, _times(runs)


def _build_arrays(bundle: Bundle, bare: Manifest, building: Path, begin: float) -> _Built:
    """The same for a network with several inputs."""
    plan, most = bare.plan, bare.plan.profile.shapes[0][0]
    backends.array_backend(plan.engine).build_arrays(ArrayNetwork.of(bundle, plan.precision), plan, building)
    engine = artifact.open_array_engine(bundle, building, bare)
    build_s = time.perf_counter() - begin
    reference = ArrayReference(bundle)
    reference.check_stored()
    verdict = examine_arrays(engine, plan.precision, reference, sizes_up_to(reference, most))
    inputs, outputs, _ = reference.at(reference.n_tokens)
    names = [spec.name for spec in (*bundle.info.inputs, *bundle.info.outputs)]
    proof = {name: np.ascontiguousarray(x, np.float32) for name, x in zip(names, (*inputs, *outputs), strict=True)}
    save_file(proof, building / PROOF)
    return build_s, verdict, _times({f"1x{most}": functools.partial(engine.run_arrays, reference.at(most)[0])})


@contextlib.contextmanager
def _workshop(parent: Path) -> Iterator[Path]:
    """A folder to build in, beside where the engine will be; what killed builds have left there is removed first.

    Who builds holds its folder's lock, which ends with the process: so a build that goes on is never taken for dead.
    """
    with machine.locked(parent):
        for left in parent.glob(f"{BUILDING}*"):
            with contextlib.suppress(OSError), machine.locked(left, wait=False):
                shutil.rmtree(left)
        made = Path(tempfile.mkdtemp(dir=parent, prefix=BUILDING))
        descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(descriptor)


def _not_built(plan: Plan, folder: Path, error: Exception) -> ModelError:
    """The error of a build that a library or the file system ended."""
    lines = str(error).splitlines() or [type(error).__name__]
    existing = next((place for place in (folder, *folder.parents) if place.is_dir()), Path("/"))
    if isinstance(error, OSError) or shutil.disk_usage(existing).free < NO_ROOM_BYTES:
        return ModelError(
            f"the compiled engine cannot be kept: {lines[0][:200]}",
            where=str(folder),
            likely="a disk that is full, or a folder that may not be written",
            hint="kstream compile --output FOLDER, or KSTREAM_CACHE in the environment, with a place that has room",
        )
    return ModelError(
        f"engine {plan.engine} cannot be built: {lines[0][:300]}",
        likely="an operation or a size that the library does not take, or a compiler that is missing",
        hint="another --engine or --precision",
    )


def command_for(bundle: Bundle, plan: Plan, output: Path | None = None) -> str:
    """The command that builds an engine again."""
    shapes = " ".join(f"--shape {times(shape)}" for shape in plan.profile.shapes)
    batches = ",".join(map(str, plan.profile.batches))  # `buckets` reads this form too
    parts = [
        f"kstream compile {bundle.info.name} --engine {plan.engine} {shapes} --batch {batches}",
        f"--precision {plan.precision} --device {plan.device} --transform {plan.transform}",
        *([] if plan.is_frozen or not plan.profile.n_channels else ["--no-freeze"]),
        *([f"--output {output}"] if output else []),
    ]
    return " ".join(parts)


def _times(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each run."""
    found = {}
    for name, run in runs.items():
        run()
        seconds = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        found[name] = round(1000 * sorted(seconds)[ROUNDS // 2], 1)
    return found


def _check_free(folder: Path) -> None:
    """Raise `ModelError` if something else than one compiled engine is in a folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        listed = set(json.loads((folder / MANIFEST).read_text("utf-8"))["files"])
        others = {path.name for path in folder.iterdir()} - listed - {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        others = {folder.name}
    if others:
        raise ModelError(
            f"this folder holds something else than a compiled engine: {', '.join(sorted(others))[:200]}",
            where=str(folder),
            hint="--output with a new folder",
        )


def _replace(folder: Path, building: Path, old: Path) -> None:
    """Put what was built in its place; an engine that was there is moved to `old`, which the caller deletes.

    Two renames: whoever opens the folder, or finds it after a crash, has a whole engine or none.

    Raises
    ------
    ModelError : meanwhile somebody has put something else there.
    """
    with machine.locked(folder.parent):
        _check_free(folder)
        if folder.exists():
            folder.rename(old)
        try:
            building.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
