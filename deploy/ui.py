"""Settings of the configuration as parameters of a scanner's user interface (OpenRecon).

A UI parameter has an identifier of letters and digits, one of five types, a default, and for numbers a range. All of
this stands in the configuration already: the annotation of a setting gives type and range, its description the text,
and the preset its default.

Numbers with decimals are ``double`` only if default and range are multiples of 0.1, for OpenRecon's schema takes no
finer ones; others travel as text, which the server reads as a number.
"""

from __future__ import annotations

import itertools
import math
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import annotated_types
from pydantic.fields import FieldInfo

from ..config import Config, ResolvedConfig, did_you_mean, preset_description, resolve, setting_names
from ..errors import ConfigError

MAX_PARAMETERS = 14
"""The scanner's card has room for no more; one of them chooses the preset."""

MAX_INFORMATION = 400
"""Characters of a text that pops up beside a parameter; the manual has the whole of it."""

INT_RANGE = (-(2**31), 2**31 - 1)
STEP = Decimal("0.1")
UNITS = {"deg": "°", "ms": "ms", "mm": "mm", "gib": "GiB", "hz": "Hz", "s": "s"}

DEFAULT_SETTINGS = (
    "noise.prewhiten",
    "trajectory.source",
    "coils.method",
    "coils.compress",
    "frames.share",
    "partial_fourier.method",
    "iterative.method",
    "images.magnitude_type",
    "images.overlay",
    "segment.on_failure",
)
"""What an operator may want to change beside the preset, and what cannot harm a scan."""

Kind = Literal["int", "double", "string", "boolean", "choice"]
Value = bool | int | float | str


@dataclass(frozen=True)
class UiParameter:
    """One parameter on the scanner's card.

    Parameters
    ----------
    id : letters and digits; the server finds the setting by them.
    setting : ``section.key``; empty for the choice of the preset.
    label, information : English texts.
    minimum, maximum : of ``int`` and ``double``; both ends belong to the range.
    choices : identifier and name of each value of a ``choice``.
    unit : at most three characters.
    """

    id: str
    setting: str
    kind: Kind
    default: Value
    label: str
    information: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[tuple[str, str], ...] = ()
    unit: str = ""

    def to_json(self) -> dict[str, Any]:
        """As OpenRecon's specification writes it."""
        out: dict[str, Any] = {
            "id": self.id,
            "type": self.kind,
            "label": {"en": self.label},
            "information": {"en": self.information},
            "default": self.default,
        }
        if self.minimum is not None:
            out |= {"minimum": self.minimum, "maximum": self.maximum}
        if self.choices:
            out["values"] = [{"id": value, "name": {"en": name}} for value, name in self.choices]
        if self.unit:
            out["unit"] = {"en": self.unit}
        return out


def ui_parameters(presets: Sequence[str], settings: Sequence[str]) -> tuple[UiParameter, ...]:
    """The choice of the preset, and then a parameter for each setting.

    Parameters
    ----------
    presets : that the operator may choose; the first is the default.
    settings : ``section.key`` names.

    Raises
    ------
    ConfigError : unknown preset or setting, one named twice, too many, one that no UI type can hold, or one whose value
        is not the same in all presets (the scanner sends every parameter, so its default would overrule the preset).
    """
    _check_names("preset", presets)
    _check_names("parameter", settings)
    resolved = [resolve(name) for name in presets]
    if not resolved:
        raise ConfigError("a package needs a preset", where="--preset", hint="kstream config lists them")
    if len(settings) + 1 > MAX_PARAMETERS:
        raise ConfigError(
            f"{len(settings)} parameters and the choice of the preset are more than the {MAX_PARAMETERS} of a scanner",
            where="--parameter",
            hint=f"name at most {MAX_PARAMETERS - 1}",
        )
    made = tuple(_of_setting(setting, resolved[0]) for setting in settings)
    for other in resolved[1:]:
        _check_same(made, resolved[0], other)
    return (_preset_choice(presets), *made)


def default_settings(presets: Sequence[str]) -> tuple[str, ...]:
    """Those of `DEFAULT_SETTINGS` that have the same value in all presets."""
    values = [_values(resolve(name)) for name in presets]
    return tuple(name for name in DEFAULT_SETTINGS if all(v[name] == values[0][name] for v in values))


def _check_names(kind: str, names: Sequence[str]) -> None:
    twice = [name for name, group in itertools.groupby(sorted(names)) if len(list(group)) > 1]
    if twice:
        raise ConfigError(f"{kind} {twice[0]!r} is named twice", where=f"--{kind}", hint="name each once")


def _check_same(made: Sequence[UiParameter], first: ResolvedConfig, other: ResolvedConfig) -> None:
    ours, theirs = _values(first), _values(other)
    for parameter in made:
        if ours[parameter.setting] != theirs[parameter.setting]:
            raise ConfigError(
                f"{parameter.setting} is {ours[parameter.setting]!r} in preset {first.preset} and "
                f"{theirs[parameter.setting]!r} in {other.preset}",
                where="--parameter",
                likely="the scanner sends every parameter, so the default of the first preset would overrule the other",
                hint="leave the parameter out, or make one package for each preset",
            )


def _values(resolved: ResolvedConfig) -> dict[str, Any]:
    dump = resolved.config.model_dump()
    return {f"{section}.{key}": value for section, keys in dump.items() for key, value in keys.items()}


def _preset_choice(presets: Sequence[str]) -> UiParameter:
    return UiParameter(
        id="config",
        setting="",
        kind="choice",
        default=presets[0],
        label="Preset",
        information=textwrap.shorten(" | ".join(f"{n}: {preset_description(n)}" for n in presets), MAX_INFORMATION),
        choices=tuple((name, name) for name in presets),
    )


def _of_setting(setting: str, resolved: ResolvedConfig) -> UiParameter:
    if setting not in setting_names():
        raise ConfigError(
            f"there is no setting {setting[:80]!r}", where="--parameter", hint=did_you_mean(setting, setting_names())
        )
    section, key = setting.split(".")
    field = Config.model_fields[section].annotation.model_fields[key]  # type: ignore[union-attr]
    value = _values(resolved)[setting]
    words = f"{section} {key}".replace("_", " ")
    form = _form(field, value)
    if form is None:
        raise ConfigError(
            f"{setting} cannot be a parameter of a scanner's user interface (its value here: {value!r})",
            where="--parameter",
            likely="lists have no type there",
            hint="set it in the container: kstream serve --set",
        )
    kind, default, limits, choices = form
    return UiParameter(
        id=_identifier(setting),
        setting=setting,
        kind=kind,
        default=default,
        label=words.capitalize(),
        information=f"{field.description or words} ({setting})",
        minimum=limits[0] if limits else None,
        maximum=limits[1] if limits else None,
        choices=tuple((choice, choice) for choice in choices),
        unit=UNITS.get(key.rpartition("_")[2], "") if kind in ("int", "double") else "",
    )


def _identifier(setting: str) -> str:
    """``coilsCalibrationSize`` of ``coils.calibration_size``."""
    first, *rest = setting.replace(".", "_").split("_")
    return first + "".join(word.capitalize() for word in rest)


_Form = tuple[Kind, Value, tuple[float, float] | None, tuple[str, ...]]


def _form(field: FieldInfo, value: Any) -> _Form | None:
    """Type, default, range and choices for a value of a setting; None if no type can hold it."""
    members = _members(field.annotation)
    words = tuple(
        word for member in members if typing.get_origin(member) is Literal for word in typing.get_args(member)
    )
    if value in words and all(isinstance(word, str) for word in words):
        return "choice", str(value), None, words
    if isinstance(value, bool):
        return "boolean", value, None, ()
    if isinstance(value, int) and float not in members:
        return "int", value, _int_range(field), ()
    if isinstance(value, int | float):
        limits = _double_range(field)
        if limits is None or not all(_is_in_steps(number) for number in (*limits, value)):
            return "string", str(value), None, ()
        return "double", float(value), limits, ()
    return ("string", value, None, ()) if isinstance(value, str) else None


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _int_range(field: FieldInfo) -> tuple[int, int]:
    low, high = INT_RANGE
    for limit in field.metadata:
        match limit:
            case annotated_types.Ge(ge=bound):
                low = max(low, math.ceil(float(str(bound))))
            case annotated_types.Gt(gt=bound):
                low = max(low, math.floor(float(str(bound))) + 1)
            case annotated_types.Le(le=bound):
                high = min(high, math.floor(float(str(bound))))
            case annotated_types.Lt(lt=bound):
                high = min(high, math.ceil(float(str(bound))) - 1)
    return low, high


def _double_range(field: FieldInfo) -> tuple[float, float] | None:
    """Both ends, which belong to the range; None unless the setting has both."""
    low = high = None
    for limit in field.metadata:
        match limit:
            case annotated_types.Ge(ge=bound):
                low = Decimal(str(bound))
            case annotated_types.Gt(gt=bound):
                low = Decimal(str(bound)) + STEP
            case annotated_types.Le(le=bound):
                high = Decimal(str(bound))
            case annotated_types.Lt(lt=bound):
                high = Decimal(str(bound)) - STEP
    return None if low is None or high is None else (float(low), float(high))


def _is_in_steps(number: float) -> bool:
    """A multiple of 0.1, also to a validator that divides in floating point (0.3 / 0.1 is not 3 there)."""
    return Decimal(str(number)) % STEP == 0 and (number / 0.1).is_integer()
