"""JSON Schema of the resources, generated from the table that also serves the parser."""

from __future__ import annotations

from typing import Any

from kumadp.resources.fields import DURATION_PATTERN, RESOURCES, Field, Message


def json_schema() -> dict[str, Any]:
    """Return one schema (draft 2020-12) for Dataplane, ZoneIngress and ZoneEgress."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kuma resources that kumadp accepts",
        "oneOf": [{**_message(message), "required": ["type", "name", "networking"]} for message in RESOURCES.values()],
    }


def _message(message: Message) -> dict[str, Any]:
    properties = {field.name: _field(field) for field in message.fields}
    if message.name in RESOURCES:
        properties["type"] = {"const": message.name}
    return {"type": "object", "title": message.name, "properties": properties, "additionalProperties": True}


def _field(field: Field) -> dict[str, Any]:
    schema = _kind(field)
    if field.help:
        schema["description"] = field.help
    return schema


def _kind(field: Field) -> dict[str, Any]:
    match field.kind:
        case "integer":
            schema: dict[str, Any] = {"type": "integer"}
            if field.minimum is not None:
                schema["minimum"] = field.minimum
            if field.maximum is not None:
                schema["maximum"] = field.maximum
            return schema
        case "boolean":
            return {"type": "boolean"}
        case "enum":
            return {"enum": [*field.choices, *range(len(field.choices))]}
        case "duration":
            return {"type": "string", "pattern": DURATION_PATTERN}
        case "tags":
            return {"type": "object", "additionalProperties": {"type": "string"}}
        case "mapping":
            return {"type": "object"}
        case "message" if isinstance(field.of, Message):
            return _message(field.of)
        case "list":
            items = _message(field.of) if isinstance(field.of, Message) else {"type": "string"}
            return {"type": "array", "items": items}
        case "text":
            return {"type": "string"}
    return {}
