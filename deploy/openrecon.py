"""The JSON specification of an OpenRecon application.

Facts are those of the public schema of version 1.1.0 and of public packages; names are checked more strictly than
there, because file names are made of them and the scanner refuses what it cannot parse without a word to the operator.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from .ui import UiParameter

LABEL = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
"""Key of the image label in which scanners of the VA60 generation look for the specification, as base64."""

PORT = 9002
MAX_NAME = 32
MAX_ADDRESS = 200
RESEARCH = "For research use only. Not a medical device: no diagnosis and no treatment may rest on what it gives."


@dataclass(frozen=True)
class Application:
    """What an OpenRecon package says about itself.

    Parameters
    ----------
    name : what the operator reads.
    id : letters and digits; stays the same for all versions.
    vendor : letters and digits.
    version : ``X.Y.Z``, three numbers.
    presets : that the operator may choose; the first is the default.
    parameters : of the scanner's card.
    memory_mib, n_cores : below which the scanner does not offer it.
    uses_gpu : takes a GPU if there is one; none is required.
    address : of the vendor.
    manufactured : date of the package.

    Raises
    ------
    ConfigError : a name, version or number that the scanner would not take.
    """

    name: str
    id: str
    vendor: str
    version: str
    presets: tuple[str, ...]
    parameters: tuple[UiParameter, ...]
    memory_mib: int = 16384
    n_cores: int = 4
    uses_gpu: bool = False
    address: str = ""
    manufactured: datetime.date = field(default_factory=datetime.date.today)

    def __post_init__(self) -> None:
        _check(self.name, rf"[^\W_](?:[\w .()+-]{{0,{MAX_NAME - 2}}}[\w)])?", "name", "letters, digits and spaces")
        _check(self.id, rf"[A-Za-z0-9]{{1,{MAX_NAME}}}", "id", "letters and digits only")
        _check(
            self.vendor, rf"[A-Za-z0-9]{{1,{MAX_NAME}}}", "vendor", "letters and digits only, for it is in file names"
        )
        number = r"(?:0|[1-9][0-9]{0,5})"
        _check(self.version, rf"{number}\.{number}\.{number}", "version", "three numbers, such as 1.0.0; no suffix")
        _check(self.address, rf"[^\x00-\x1f\x7f]{{0,{MAX_ADDRESS}}}", "address", "one line")
        if self.memory_mib < 1 or self.n_cores < 1:
            raise ConfigError(
                f"{self.memory_mib} MiB of memory and {self.n_cores} cores cannot be required",
                where="--memory-mib, --cores",
                hint="at least 1 of each",
            )

    @property
    def file_name(self) -> str:
        """The name that package, image and manual of the VA60 generation must share."""
        return f"OpenRecon_{self.vendor}_{self.id}_V{self.version}"

    def specification(self) -> dict[str, Any]:
        """The whole JSON specification."""
        return {
            "general": self._general(),
            "reconstruction": {
                "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
                "port": PORT,
                "emitter": "raw",
                "injector": "image",
                "can_process_adjustment_data": False,
                "can_use_gpu": self.uses_gpu,
                "min_count_required_gpus": 0,
                "min_required_gpu_memory": 0,
                "min_required_memory": self.memory_mib,
                "min_count_required_cpu_cores": self.n_cores,
                "content_qualification_type": "RESEARCH",
            },
            "parameters": [parameter.to_json() for parameter in self.parameters],
        }

    def _general(self) -> dict[str, Any]:
        return {
            "name": {"en": self.name},
            "version": self.version,
            "vendor": self.vendor,
            "information": {"en": f"Streaming reconstruction and segmentation (kstream). {RESEARCH}"},
            "id": self.id,
            "regulatory_information": {
                "device_trade_name": self.name,
                "production_identifier": self.version,
                "manufacturer_address": self.address,
                "made_in": "",
                "manufacture_date": f"{self.manufactured:%Y/%m/%d}",
                "material_number": f"{self.id}_{self.version}",
                "gtin": "",
                "udi": "",
                "safety_advices": RESEARCH,
                "special_operating_instructions": "",
                "additional_relevant_information": "",
            },
        }


def to_text(specification: dict[str, Any]) -> str:
    """The specification as it is written to files."""
    return json.dumps(specification, indent=2, ensure_ascii=False) + "\n"


def to_label(specification: dict[str, Any]) -> str:
    """The specification as the value of `LABEL`."""
    return base64.b64encode(json.dumps(specification, ensure_ascii=False).encode()).decode("ascii")


def from_label(value: str) -> dict[str, Any]:
    """The specification in a label.

    Raises
    ------
    ConfigError : it is not base64 of a JSON object.
    """
    try:
        found = json.loads(base64.b64decode(value, validate=True))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the image's label is not base64 of JSON: {error}", where=LABEL) from error
    if not isinstance(found, dict):
        raise ConfigError("the image's label is not a JSON object", where=LABEL)
    return found


def identifier_of(name: str) -> str:
    """Letters and digits of a name: the id if none is given."""
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _check(value: str, pattern: str, what: str, hint: str) -> None:
    if re.fullmatch(pattern, value) is None:
        raise ConfigError(f"{what} {value[:80]!r} is not possible", where=f"--{what}", hint=hint)
