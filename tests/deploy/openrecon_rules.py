"""What a scanner takes as an OpenRecon specification, and what else would hurt its users.

The types and names are facts of the public schema 1.1.0; the limits marked as ours are stricter.
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import jsonschema

INT32 = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
TENTHS = {"type": "number", "multipleOf": 0.1}


def english(longest: int) -> dict[str, Any]:
    """A text in English; how long is our own limit."""
    text = {"type": "string", "minLength": 1, "maxLength": longest, "pattern": r"^\S(.*\S)?$"}
    return closed({"en": text})


def closed(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def parameter(kind: str, **more: Any) -> dict[str, Any]:
    common = {
        "id": {"type": "string", "pattern": "^[A-Za-z0-9]{1,48}$"},
        "type": {"const": kind},
        "label": english(32),
        "information": english(400),
    }
    return closed(common | more, optional=("unit",))


UNIT = closed({"en": {"type": "string", "minLength": 1, "maxLength": 3}})
CHOICE = closed({"id": {"type": "string", "minLength": 1}, "name": english(32)})
TEXT = {"type": "string"}
ABOUT = (
    "device_trade_name",
    "production_identifier",
    "manufacturer_address",
    "made_in",
    "material_number",
    "gtin",
    "udi",
    "safety_advices",
    "special_operating_instructions",
    "additional_relevant_information",
)

SCHEMA: dict[str, Any] = closed(
    {
        "general": closed(
            {
                "name": english(32),
                "version": {"type": "string", "pattern": r"^(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}$"},
                "vendor": {"type": "string", "pattern": "^[A-Za-z0-9]+$"},
                "id": {"type": "string", "pattern": "^[A-Za-z0-9]+$"},
                "information": english(400),
                "regulatory_information": closed(
                    dict.fromkeys(ABOUT, TEXT)
                    | {"manufacture_date": {"type": "string", "pattern": r"^\d{4}/\d{2}/\d{2}$"}}
                ),
            }
        ),
        "reconstruction": closed(
            {
                "transfer_protocol": closed({"protocol": {"const": "ISMRMRD"}, "version": {"const": "1.4.1"}}),
                "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                "emitter": {"enum": ["raw", "image"]},
                "injector": {"enum": ["image", "compleximage"]},
                "can_process_adjustment_data": {"type": "boolean"},
                "can_use_gpu": {"type": "boolean"},
                "min_count_required_gpus": {"type": "integer", "minimum": 0},
                "min_required_gpu_memory": {"type": "integer", "minimum": 0},
                "min_required_memory": {"type": "integer", "minimum": 1},
                "min_count_required_cpu_cores": {"type": "integer", "minimum": 1},
                "content_qualification_type": {"const": "RESEARCH"},  # ours: kstream is nothing else
            }
        ),
        "parameters": {
            "type": "array",
            "maxItems": 14,
            "uniqueItems": True,
            "items": {
                "oneOf": [
                    parameter("boolean", default={"type": "boolean"}),
                    parameter("string", default=TEXT),
                    parameter("choice", default=TEXT, values={"type": "array", "minItems": 1, "items": CHOICE}),
                    parameter("int", default=INT32, minimum=INT32, maximum=INT32, unit=UNIT),
                    parameter("double", default=TENTHS, minimum=TENTHS, maximum=TENTHS, unit=UNIT),
                ]
            },
        },
    }
)


def problems(specification: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a specification; a JSON schema cannot compare one value with another."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    found = [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(specification)]
    if found:
        return found
    parameters = specification["parameters"]
    twice = [name for name, n in Counter(p["id"].lower() for p in parameters).items() if n > 1]
    found += [f"id {name} is there twice" for name in twice]
    found += [
        f"label of {p['id']} is there twice" for p in parameters if labels(parameters).count(p["label"]["en"]) > 1
    ]
    if [p["id"] for p in parameters].count("config") != 1:
        found.append("no parameter chooses the configuration")
    for p in parameters:
        if "minimum" in p and not p["minimum"] <= p["default"] <= p["maximum"]:
            found.append(f"default of {p['id']} is out of its range")
        if p["type"] == "double" and any(
            Decimal(str(p[key])) % Decimal("0.1") for key in ("minimum", "maximum", "default")
        ):
            found.append(f"{p['id']} is finer than 0.1")
        if p["type"] == "choice":
            ids = [value["id"] for value in p["values"]]
            if p["default"] not in ids or len(set(ids)) != len(ids):
                found.append(f"default of {p['id']} is no choice, or a choice is there twice")
    gpu = specification["reconstruction"]
    if not gpu["can_use_gpu"] and (gpu["min_count_required_gpus"] or gpu["min_required_gpu_memory"]):
        found.append("a GPU is required and cannot be used")
    return found


def labels(parameters: list[dict[str, Any]]) -> list[str]:
    return [p["label"]["en"] for p in parameters]
