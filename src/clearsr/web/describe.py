"""The OpenAPI description of POST /v1/upscale, made from the fields' own descriptions and types."""

from typing import Any

from fastapi import Response

from clearsr.config.output import FORMATS, OutputConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.web.fields import MEDIA_TYPES, OUTPUT_FIELDS, SAMPLING_FIELDS

_STATUSES = {
    400: "not an image, or a damaged one; text for a model that takes none",
    401: "the token is missing or wrong",
    408: "the upload took too long",
    413: "too many bytes or pixels",
    415: "not multipart/form-data",
    422: "a setting is not accepted",
    429: "all places of the queue are taken; Retry-After says when to come again",
    500: "a bug of the server",
    503: "shutting down, or out of memory",
    504: "the picture took longer than the server allows",
    507: "the server's folder is full",
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "status": {"type": "integer"},
                "code": {"type": "string"},
                "message": {"type": "string"},
            },
        }
    },
}


def _fields() -> dict[str, Any]:
    """Field of the form -> its schema."""
    fields: dict[str, Any] = {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "the picture; its name is part of the seed",
        },
        "format": {"type": "string", "enum": list(FORMATS), "default": "png"},
        "quality": {"type": "integer", "minimum": 1, "maximum": 100, "description": "of jpg, webp and avif"},
    }
    schema = SamplingConfig.model_json_schema()
    for field, path in SAMPLING_FIELDS.items():
        node = schema
        for part in path.split("."):
            properties = node["properties"][part]
            reference = properties.get("$ref") or (properties.get("allOf") or [{}])[0].get("$ref")
            node = schema["$defs"][reference.rpartition("/")[2]] if reference else properties
        fields[field] = {key: value for key, value in node.items() if key not in ("title", "default")}
    output = OutputConfig.model_json_schema()["properties"]
    fields |= {field: {k: v for k, v in output[field].items() if k != "title"} for field in OUTPUT_FIELDS}
    return fields


def _responses() -> dict[int | str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    pictures = {"description": "the result", "content": dict.fromkeys(MEDIA_TYPES.values(), binary)}
    errors: dict[int | str, Any] = {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in _STATUSES.items()
    }
    return {200: pictures, **errors}


UPSCALE_DESCRIPTION: dict[str, Any] = {
    "response_class": Response,
    "responses": _responses(),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "additionalProperties": False,
                        "properties": _fields(),
                    }
                }
            },
        }
    },
}
