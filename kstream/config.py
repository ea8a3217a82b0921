"""Settings of a pipeline: one frozen section per step, in data-flow order, and where each value came from.

A configuration is layered: defaults, then a preset (``kstream/presets/NAME.toml``, which a scanner asks for by name),
then a TOML file, then parameters that the scanner sends, then ``--set section.key=value``. Later layers win, and
`ResolvedConfig.origins` remembers which layer set each value: whoever runs a server has the last word on it.
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
from .errors import did_you_mean as did_you_mean

SHOW = "kstream config show PRESET lists them"


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReadoutsConfig(Section):
    """What an image readout must look like."""

    samples: int | Literal["header", "first"] = Field("header", description="samples per readout, or who says so")
    not_finite: Literal["leave", "zero", "error"] = Field(
        "leave", description="readouts with NaN, Inf or huge samples: left aside, mended with 0, or the end"
    )
    remove_oversampling: bool = Field(False, description="crop readouts to the recon field of view")


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
    angle_index: int = Field(0, ge=0, le=7, description="which user_float holds the spoke angle")
    angle_units: Literal["header", "rad", "deg"] = Field(
        "header", description="unit of that angle; header: user parameter spoke_angle_rad or spoke_angle_deg"
    )
    golden_order: int = Field(0, ge=0, le=100, description="1 golden, N tiny golden; 0: golden_angle_deg of the header")
    first_angle_deg: float = Field(0.0, ge=-360, le=360, description="angle of spoke 0")
    alternate: bool = Field(False, description="every second spoke runs the other way")
    clockwise: bool = Field(False, description="angles count from x towards -y")
    outside: Literal["error", "mask"] = Field("error", description="samples beyond the encoded k-space")
    delay_samples: float = Field(0.0, ge=-8, le=8, description="receiver delay: shift of the centre along the readout")
    delay: Literal["off", "estimate"] | tuple[float, float, float] = Field(
        "estimate", description="gradient delays of spokes: found from the first ones, or Sx, Sy, Sxy in samples"
    )
    delay_spokes: int = Field(24, ge=8, le=256, description="spokes that the estimate waits for, per slice")


class FramesConfig(Section):
    """Which readouts form one output."""

    by: Literal["auto", "windows", "repetition", "contrast", "phase", "set", "single"] = Field(
        "auto", description="spoke windows, or the encoding counter that numbers the frames"
    )
    n_frames: int = Field(0, ge=0, le=4096, description="frames of a windowed scan; 0: the header's n_frames")
    readouts_per_frame: int = Field(0, ge=0, description="readouts that fill a frame; 0: the encoding limits")
    close_after: int = Field(
        -1,
        ge=-1,
        description="later readouts that end a frame which lacks some; -1: a frame's worth; 0: the scan's end",
    )
    early: tuple[int, ...] = Field(
        (),
        description="readouts of a frame after which it is also segmented as it is; for lines, and for spokes that are "
        "combined as they come",
    )
    share: int = Field(1, ge=1, le=64, description="frames that one output spans (sliding window); 1: each its own")


class GriddingConfig(Section):
    """How readouts become images."""

    method: Literal["auto", "zero-wait", "coil-grids", "lines"] = Field(
        "auto",
        description="add spokes coil-combined as they come, grid every coil, or put Cartesian lines at their places; "
        "auto: zero-wait if it can be, else coil-grids",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="where zero-wait volumes and their coil maps are computed; all else stays on the cpu. cuda has "
        "never run on a GPU",
    )
    density: Literal["polar", "uniform"] = Field("polar", description="density compensation")
    angles: Literal["gaps", "mean"] = Field(
        "gaps", description="angle that a spoke stands for: half the gap to each planned neighbour, or the mean"
    )
    oversampling: float = Field(1.5, gt=1.0, le=3.0, description="grid size over image size")
    width: int = Field(5, ge=2, le=12, description="kernel width in grid cells")
    memory_gib: float = Field(8.0, gt=0, description="most memory for frames that are open at the same time")


class CoilsConfig(Section):
    """Coil combination."""

    method: Literal["espirit", "rss"] = Field("espirit", description="ESPIRiT maps, or root sum of squares")
    calibration_frame: int = Field(0, ge=-1, description="frame that gives the maps; -1: each its own")
    calibration_size: int = Field(24, ge=8, le=64, description="centre of k-space used, in samples")
    calibration_spokes: int = Field(
        64, ge=0, description="first spokes of a golden-angle calibration frame that give the maps; 0: all"
    )
    kernel: int = Field(6, ge=3, le=12, description="ESPIRiT window")
    sets: int = Field(
        1, ge=1, le=4, description="sets of maps, for objects that fold over themselves; a network sees the first"
    )
    weighting: Literal["hard", "soft"] = Field("hard", description="ESPIRiT signal space and maps: cut, or faded out")
    compress: int = Field(0, ge=0, le=64, description="virtual coils to compress to; 0: all coils as they are")
    threshold: float = Field(0.02, gt=0, lt=1, description="relative singular value of the signal space")
    crop: float = Field(0.8, ge=0, le=1, description="eigenvalue below which a voxel has no map")
    iterations: int = Field(100, ge=1, le=1000, description="of the power method that finds the maps")
    map_size: int = Field(64, ge=16, description="points per axis on which eigenvectors are computed")


class PartialFourierConfig(Section):
    """What a scan left out along kz."""

    method: Literal["zero", "homodyne", "pocs"] = Field("zero", description="zeros, or conjugate symmetry")
    iterations: int = Field(10, ge=1, le=200, description="of pocs")


class IterativeConfig(Section):
    """An iterated image instead of the adjoint; it starts when the frame ends."""

    method: Literal["off", "cg-sense", "tv", "temporal"] = Field(
        "off", description="least squares; with total variation in the plane; or with sparse change in time"
    )
    iterations: int = Field(15, ge=1, le=500, description="at most")
    tolerance: float = Field(1e-3, ge=0, lt=1, description="relative residual (cg-sense) or change at which it stops")
    l2: float = Field(0.0, ge=0, le=10, description="Tikhonov weight of cg-sense")
    weight: float = Field(0.005, ge=0, le=1, description="weight of tv or temporal, relative to the largest voxel")
    density: Literal["scan", "voronoi", "pipe-menon"] = Field(
        "scan", description="weights as gridding.density has them, or from where the samples lie"
    )


class ContrastConfig(Section):
    """Contrast difference."""

    subtract: bool = Field(False, description="give post minus pre over the RMS of pre")
    pre_frame: int = Field(0, ge=0, description="the pre-contrast frame")


class ScalingConfig(Section):
    """Units that a network knows, for networks that see frames and no differences."""

    method: Literal["off", "image"] = Field(
        "off", description="divide k-space by the brightness (99th percentile) of its image, for the network"
    )


class SegmentConfig(Section):
    """Segmentation of the difference, or of scaled k-space."""

    model: str = Field("", description="name or folder of a model bundle; empty: no segmentation")
    frames: tuple[int, ...] = Field((), description="frames to segment; empty: all that have a difference")
    on_failure: Literal["images", "stop"] = Field(
        "images", description="model fails: images still go back with an error text, or the measurement ends"
    )


class CineConfig(Section):
    """Analysis of a cardiac cine scan, straight from its samples."""

    model: str = Field("", description="name or folder of a model bundle (DiSK or k-MTR); empty: none")
    update: Literal["frame", "lines", "slice"] = Field(
        "frame", description="labels from what has come so far: after each frame, every update_lines, or never"
    )
    update_lines: int = Field(64, ge=1, description="readouts between two updates, if update is lines")
    views: str = Field(
        "",
        max_length=256,
        description="4ch, 2ch, 3ch, sax0, sax1 ... for every slice, with spaces; empty: the header's parameter views",
    )


class ImagesConfig(Section):
    """What goes back to the scanner."""

    magnitude_series: int = Field(1, ge=1, le=65535, description="series number of magnitude images")
    label_series: int = Field(2, ge=1, le=65535, description="series number of label images")
    provisional_series: int = Field(4, ge=1, le=65535, description="series number of label images that are not final")
    magnitude_type: Literal["float32", "uint16"] = Field("float32", description="pixel type of magnitude images")
    label_lut: str = Field("", max_length=64, description="palette of the host for label images, such as NAME.pal")
    overlay: Literal["off", "rgb", "contours"] = Field(
        "off", description="a further series that shows the labels on the magnitude: in colours, or as polygons (ROI_*)"
    )
    overlay_series: int = Field(3, ge=1, le=65535, description="series number of overlays")
    contour_axes: Literal["xy", "yx"] = Field("xy", description="order of a polygon's coordinates")


class Config(Section):
    """All sections, in the order in which data meet them."""

    readouts: ReadoutsConfig = ReadoutsConfig()  # type: ignore[call-arg]
    noise: NoiseConfig = NoiseConfig()  # type: ignore[call-arg]
    trajectory: TrajectoryConfig = TrajectoryConfig()  # type: ignore[call-arg]
    frames: FramesConfig = FramesConfig()  # type: ignore[call-arg]
    gridding: GriddingConfig = GriddingConfig()  # type: ignore[call-arg]
    coils: CoilsConfig = CoilsConfig()  # type: ignore[call-arg]
    iterative: IterativeConfig = IterativeConfig()  # type: ignore[call-arg]
    partial_fourier: PartialFourierConfig = PartialFourierConfig()  # type: ignore[call-arg]
    contrast: ContrastConfig = ContrastConfig()  # type: ignore[call-arg]
    scaling: ScalingConfig = ScalingConfig()  # type: ignore[call-arg]
    segment: SegmentConfig = SegmentConfig()  # type: ignore[call-arg]
    cine: CineConfig = CineConfig()  # type: ignore[call-arg]
    images: ImagesConfig = ImagesConfig()  # type: ignore[call-arg]


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration and the origin of each of its values, keyed ``section.key``.

    ``overruled`` names what a client asked for and ``--set`` decided otherwise.
    """

    preset: str
    config: Config
    origins: Mapping[str, str]
    overruled: tuple[str, ...] = ()

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
            hint=did_you_mean(name, preset_names()),
        )
    return (resources.files("kstream") / "presets" / f"{name}.toml").read_text("utf-8")


def resolve(
    preset: str,
    *,
    file: Path | None = None,
    settings: Iterable[str] = (),
    parameters: Mapping[str, Any] | None = None,
) -> ResolvedConfig:
    """Layer defaults, preset, file, parameters of a client, and ``section.key=value`` settings of ``--set``.

    What ``--set`` takes from a client is in `ResolvedConfig.overruled`: it must be told, not only done.

    Raises
    ------
    ConfigError : unknown preset, unreadable file, unknown key, or a value out of range; names key and origin.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = [(f"preset {preset}", tomllib.loads(_preset_text(preset)))]
    if file is not None:
        layers.append((f"file {file.name}", _read_toml(file)))
    if parameters:
        layers.append(("client", _from_client(parameters)))
    layers.append(("--set", _from_settings(settings)))
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    overruled: list[str] = []
    for origin, layer in layers:
        for section, keys in layer.items():
            if not isinstance(keys, Mapping):
                raise ConfigError(f"'{section}' is not a section", where=origin, hint="write section.key = value")
            for key, value in keys.items():
                name = f"{section}.{key}"
                if origins.get(name) == "client" and values[section][key] != value:
                    overruled.append(name)
                values.setdefault(section, {})[key] = value
                origins[name] = origin
    try:
        return ResolvedConfig(preset, Config.model_validate(values), origins, tuple(overruled))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        origin = origins.get(key, "configuration")
        if first["type"] == "extra_forbidden":
            if "." not in key:  # a section that does not exist: name the setting in it
                key = next((name for name in origins if name.startswith(f"{key}.")), key)
                origin = origins.get(key, origin)
            raise ConfigError(
                f"there is no setting {key[:80]!r}", where=origin, hint=did_you_mean(key, setting_names(), SHOW)
            ) from None
        raise ConfigError(
            f"{key}: {first['msg']} (got {first.get('input')!r})", where=origin, hint=f"kstream config show {preset}"
        ) from None


def setting_names() -> tuple[str, ...]:
    """Every ``section.key``, in data-flow order."""
    return tuple(f"{section}.{key}" for section, keys in Config().model_dump().items() for key in keys)


def meanings() -> dict[str, str]:
    """What each ``section.key`` is, in the words of its field."""
    return {
        f"{section}.{key}": field.description or ""
        for section, value in Config()
        for key, field in type(value).model_fields.items()
    }


def commented_toml(preset: str) -> str:
    """All settings as TOML: those that the preset gives, and the others as comments with their defaults.

    Raises
    ------
    ConfigError : unknown preset.
    """
    resolved, definitions = resolve(preset), Config.model_json_schema()["$defs"]
    lines = [f"# kstream settings, begun from preset {preset}: {preset_description(preset)}"]
    lines.append("# Lines that begin with # keep the default. Check with: kstream config validate FILE")
    for section, values in resolved.config:
        allowed = definitions[type(values).__name__]["properties"]
        lines += ["", f"# {(type(values).__doc__ or '').strip()}", f"[{section}]"]
        for key, value in values.model_dump(mode="json").items():
            lines.append(f"# {allowed[key]['description']} ({_allowed(allowed[key])})")
            is_given = f"{section}.{key}" in resolved.origins
            lines.append(f"{'' if is_given else '# '}{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _allowed(schema: Mapping[str, Any]) -> str:
    """The values that a field takes, from its JSON schema, such as ``0 to 7`` or ``"auto" or "windows"``."""
    if "anyOf" in schema:
        return " or ".join(_allowed(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        n = schema.get("minItems")
        return f"a list of {n} numbers" if n else "a list of whole numbers"
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}[schema["type"]]
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    bounds = [
        f"{word} {value:g}"
        for word, value in (("from", low), ("above", above), ("to", high), ("below", below))
        if value is not None
    ]
    return " ".join([kind, *bounds])


def _from_client(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a stranger sent: names must be settings to the letter, and a model is a shipped one, never a folder."""
    layer: dict[str, dict[str, Any]] = {}
    names = setting_names()
    for name, value in parameters.items():
        if name not in names:
            raise ConfigError(
                f"there is no setting {name[:80]!r}", where="client", hint=did_you_mean(name[:80], names, SHOW)
            )
        section, _, key = name.partition(".")
        layer.setdefault(section, {})[key] = parse_value(str(value))
    for section in ("segment", "cine"):
        model = str(layer.get(section, {}).get("model", ""))
        if any(character in model for character in "/\\.~"):
            raise ConfigError(
                "a client may name a model, not a path", where=f"{section}.model", hint="kstream models list"
            )
    return layer


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
    except (ValueError, RecursionError):  # not TOML, a number of thousands of digits, or lists in lists in lists
        return text.strip()
