"""``kstream compile``: build an engine, hold it to the gate, time it, and keep it."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ..errors import ConfigError, ModelError, ShapeError
from ..models.bundle import Bundle
from . import artifact, backends, machine
from .artifact import MANIFEST, PROOF, Key, Manifest
from .calibrate import input_of
from .engine import MAX_BATCH, Engine
from .gate import Reference, Verdict, examine
from .profile import Plan, Profile, Space, times

ROUNDS = 3
MAX_SIDE = 1024


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
    shapes : none: that of the bundle's example.

    Raises
    ------
    ModelError : the network has several inputs, or the library lacks the precision or the device.
    ShapeError : a shape has another number of axes than the network's input, or a size out of range.
    """
    n_channels, n_axes = input_of(bundle)
    if precision == "auto":
        has_bf16 = "bf16" in backends.backend(engine).PRECISIONS and machine.has_fast_bf16(device)
        precision = "bf16" if has_bf16 else "fp32"
    shapes = shapes or (bundle.example()[0].shape[2:],)
    for shape in shapes:
        if len(shape) != n_axes - 2 or not all(0 < n <= MAX_SIDE for n in shape):
            raise ShapeError(
                f"a patch of {times(shape)} does not suit {bundle.info.name}",
                likely=f"it takes {n_axes - 2} sizes, each from 1 to {MAX_SIDE}",
                hint="--shape 24x320x320",
            )
    profile = Profile(tuple(sorted(set(batches))), tuple(dict.fromkeys(shapes)), n_channels)
    plan = Plan(engine, precision, device, profile, transform, is_frozen)
    backends.check(plan)
    return plan


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
    begin = time.perf_counter()
    bare = Manifest(Key.here(bundle, plan), plan, Verdict(plan.precision, ()), command_for(bundle, plan, output))
    name = f"{plan.engine}-{plan.precision}-{bare.slot}"
    folder = output or artifact.folder_of(bundle) / name
    _check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as made:
        building = Path(made) / name
        building.mkdir()
        backends.backend(plan.engine).build(bundle.build(), plan, building)
        engine = artifact.open_engine(bundle, building, bare)
        build_s = time.perf_counter() - begin
        reference = Reference(bundle)
        reference.check_stored()
        every_batch = range(1, plan.profile.batches[-1] + 1)  # also those that are padded
        verdict = examine(engine, reference, every_batch, plan.profile.shapes)
        verdict.demand(engine.name)
        _write_proof(building / PROOF, reference, min(plan.profile.shapes))
        manifest = dataclasses.replace(
            bare,
            verdict=verdict,
            files={path.name: artifact.hash_file(path) for path in sorted(building.iterdir())},
            build_s=round(build_s, 2),
            times_ms=_times(engine, plan.profile),
        )
        artifact.write_text(building / MANIFEST, manifest.to_json())
        del engine
        _replace(folder, building, Path(made) / "old")
    return folder, manifest


def command_for(bundle: Bundle, plan: Plan, output: Path | None = None) -> str:
    """The command that builds an engine again."""
    shapes = " ".join(f"--shape {times(shape)}" for shape in plan.profile.shapes)
    batches = ",".join(map(str, plan.profile.batches))  # `buckets` reads this form too
    parts = [
        f"kstream compile {bundle.info.name} --engine {plan.engine} {shapes} --batch {batches}",
        f"--precision {plan.precision} --device {plan.device} --transform {plan.transform}",
        *([] if plan.is_frozen else ["--no-freeze"]),
        *([f"--output {output}"] if output else []),
    ]
    return " ".join(parts)


def _write_proof(path: Path, reference: Reference, shape: Space) -> None:
    inputs, logits = reference.batch(1, shape)
    save_file({"kspace": np.ascontiguousarray(inputs), "logits": logits.astype(np.float32)}, path)


def _times(engine: Engine, profile: Profile) -> dict[str, float]:
    """Median milliseconds of a run, by ``batch x shape``."""
    rng = np.random.default_rng(0)
    found = {}
    for shape in profile.shapes:
        for n_patches in profile.batches:
            batch = rng.standard_normal((n_patches, profile.n_channels, *shape), np.float32)
            engine.run(batch)
            seconds = []
            for _ in range(ROUNDS):
                begin = time.perf_counter()
                engine.run(batch)
                seconds.append(time.perf_counter() - begin)
            found[f"{n_patches}x{times(shape)}"] = round(1000 * sorted(seconds)[ROUNDS // 2], 1)
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
