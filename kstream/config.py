"""Settings of a pipeline: one frozen section per step, in data-flow order, and where each value came from.

A configuration is layered: defaults, then a preset (``kstream/presets/NAME.toml``, which a scanner asks for by name),
then a TOML file, then ``--set section.key=value``, then JSON parameters that the client sends. Later layers win, and
`ResolvedConfig.origins` remembers which layer set each value.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReadoutsConfig(Section):
    """What an image readout must look like."""

    samples: int | Literal["header", "first"] = Field("header", description="samples per readout, or who says so")


class NoiseConfig(Section):
    """Noise prewhitening."""

    prewhiten: bool = Field(True, description="use noise readouts if the scan has them")


class TrajectoryConfig(Section):
    """Where samples lie in k-space."""

    source: Literal[
        "auto", "acquisition", "user_float", "golden-angle", "uniform-half", "uniform-full", "cartesian"
    ] = Field("auto", description="where the trajectory comes from")
    units: Literal["header", "cycles_per_fov", "cycles_per_sample", "cycles_per_metre"] = Field(
        "header", description="unit of carried trajectories; header: user parameter trajectory_units"
    )
    angle_index: int = Field(0, ge=0, le=7, description="which user_float holds the spoke angle in rad")
    delay_samples: float = Field(0.0, ge=-8, le=8, description="gradient delay: shift of the centre along the readout")


class FramesConfig(Section):
    """Which readouts form one output."""

    by: Literal["auto", "windows", "repetition", "contrast", "phase", "set", "single"] = Field(
        "auto", description="spoke windows, or the encoding counter that numbers the frames"
    )
    n_frames: int = Field(0, ge=0, le=4096, description="frames of a windowed scan; 0: the header's n_frames")
    readouts_per_frame: int = Field(0, ge=0, description="readouts that fill a frame; 0: the encoding limits")


class GriddingConfig(Section):
    """Regridding of each readout (Kaiser-Bessel)."""

    density: Literal["polar", "uniform"] = Field("polar", description="density compensation")
    oversampling: float = Field(1.5, gt=1.0, le=3.0, description="grid size over image size")
    width: int = Field(5, ge=2, le=12, description="kernel width in grid cells")
    memory_gib: float = Field(8.0, gt=0, description="most memory for frames that are open at the same time")


class CoilsConfig(Section):
    """Coil combination."""

    method: Literal["espirit", "rss"] = Field("espirit", description="ESPIRiT maps, or root sum of squares")
    calibration_frame: int = Field(0, ge=-1, description="frame that gives the maps; -1: each its own")
    calibration_size: int = Field(24, ge=8, le=64, description="centre of k-space used, in samples")
    kernel: int = Field(6, ge=3, le=12, description="ESPIRiT window")
    threshold: float = Field(0.02, gt=0, lt=1, description="relative singular value of the signal space")
    crop: float = Field(0.8, ge=0, le=1, description="eigenvalue below which a voxel has no map")
    iterations: int = Field(100, ge=1, le=1000, description="of the power method that finds the maps")
    map_size: int = Field(64, ge=16, description="points per axis on which eigenvectors are computed")


class ContrastConfig(Section):
    """Contrast difference."""

    subtract: bool = Field(False, description="give post minus pre over the RMS of pre")
    pre_frame: int = Field(0, ge=0, description="the pre-contrast frame")


class SegmentConfig(Section):
    """Segmentation of the difference."""

    model: str = Field("", description="name or folder of a model bundle; empty: no segmentation")
    frames: tuple[int, ...] = Field((), description="frames to segment; empty: all that have a difference")


class ImagesConfig(Section):
    """What goes back to the scanner."""

    magnitude_series: int = Field(1, ge=1, le=65535, description="series number of magnitude images")
    label_series: int = Field(2, ge=1, le=65535, description="series number of label images")
    magnitude_type: Literal["float32", "uint16"] = Field("float32", description="pixel type of magnitude images")


class Config(Section):
    """All sections, in the order in which data meet them."""

    readouts: ReadoutsConfig = ReadoutsConfig()  # type: ignore[call-arg]
    noise: NoiseConfig = NoiseConfig()  # type: ignore[call-arg]
    trajectory: TrajectoryConfig = TrajectoryConfig()  # type: ignore[call-arg]
    frames: FramesConfig = FramesConfig()  # type: ignore[call-arg]
    gridding: GriddingConfig = GriddingConfig()  # type: ignore[call-arg]
    coils: CoilsConfig = CoilsConfig()  # type: ignore[call-arg]
    contrast: ContrastConfig = ContrastConfig()  # type: ignore[call-arg]
    segment: SegmentConfig = SegmentConfig()  # type: ignore[call-arg]
    images: ImagesConfig = ImagesConfig()  # type: ignore[call-arg]


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration and the origin of each of its values, keyed ``section.key``."""

    preset: str
    config: Config
    origins: Mapping[str, str]

    def rows(self) -> list[tuple[str, str, str]]:
        """``(section.key, value, origin)`` for every value, in data-flow order."""
        dump = self.config.model_dump(mode="json")
        return [
            (f"{section}.{key}", json.dumps(value), self.origins.get(f"{section}.{key}", "default"))
            for section, values in dump.items()
            for key, value in values.items()
        ]


def preset_names() -> tuple[str, ...]:
    """Names that a scanner may ask for: the files of ``kstream/presets``. Nothing else is ever loaded."""
    folder = resources.files("kstream") / "presets"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def preset_description(name: str) -> str:
    """First comment line of a preset: what it is for."""
    return _preset_text(name).splitlines()[0].lstrip("# ")


def _preset_text(name: str) -> str:
    if name not in preset_names():
        raise ConfigError(
            f"there is no preset {name[:80]!r}",
            where="the CONFIG message, or --preset",
            likely="a configuration of another server, or a misspelling",
            hint=f"one of: {', '.join(preset_names())}",
        )
    return (resources.files("kstream") / "presets" / f"{name}.toml").read_text("utf-8")


def resolve(
    preset: str,
    *,
    file: Path | None = None,
    settings: Iterable[str] = (),
    parameters: Mapping[str, Any] | None = None,
) -> ResolvedConfig:
    """Layer defaults, preset, file, ``section.key=value`` settings and client parameters.

    Raises
    ------
    ConfigError : unknown preset, unreadable file, unknown key, or a value out of range; names key and origin.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = [(f"preset {preset}", tomllib.loads(_preset_text(preset)))]
    if file is not None:
        layers.append((f"file {file.name}", _read_toml(file)))
    layers.append(("--set", _from_settings(settings)))
    if parameters:
        _check_client_model(str(parse_value(str(parameters.get("segment.model", "")))))
        layers.append(("client", _from_settings(f"{key}={value}" for key, value in parameters.items())))
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for section, keys in layer.items():
            if not isinstance(keys, Mapping):
                raise ConfigError(f"'{section}' is not a section", where=origin, hint="write section.key = value")
            for key, value in keys.items():
                values.setdefault(section, {})[key] = value
                origins[f"{section}.{key}"] = origin
    try:
        return ResolvedConfig(preset, Config.model_validate(values), origins)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        raise ConfigError(
            f"{key}: {first['msg']} (got {first.get('input')!r})",
            where=origins.get(key, "configuration"),
            hint=f"kstream config {preset}",
        ) from None


def _check_client_model(name: str) -> None:
    """A client may choose a shipped model by name, never a folder of this machine."""
    if any(character in name for character in "/\\.~"):
        raise ConfigError("a client may name a model, not a path", where="segment.model", hint="kstream models list")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read configuration: {error}", where=str(path)) from error


def _from_settings(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """``section.key=value`` strings as a nested mapping; values are read as TOML, or taken as text."""
    layer: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise ConfigError(f"cannot understand setting {setting[:80]!r}", hint="--set section.key=value")
        layer.setdefault(section, {})[key] = parse_value(text)
    return layer


def parse_value(text: str) -> Any:
    """A setting's value as TOML (number, boolean, list, quoted text), or else the text itself."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
