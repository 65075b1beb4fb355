"""What the fields of a request are, read off the configurations: for programs (OpenAPI) and for the page."""

from collections.abc import Mapping
from typing import Any

import clearsr
from clearsr.config.output import FORMATS, OutputConfig
from clearsr.config.sampling import SAMPLING_FLAGS, SamplingConfig
from clearsr.web.fields import MEDIA_TYPES, OUTPUT_FIELDS, QUALITY_FIELDS, SAMPLING_FIELDS, detail_of
from clearsr.web.runs import Service

# The page's groups. What it has larger controls for, the size, is in none.
GROUPS = {
    "Sampling": (
        "steps", "seed", "scheduler", "spacing", "start", "start_timestep", "noise_scale", "guidance_scale",
        "negative_prompt",
    ),
    "Fidelity and detail": (
        "lsa", "alpha", "beta", "lsa.ela_end", "lsa.lla_start", "lsa.target", "painting",
    ),
    "Colour": ("color", "gray"),
    "Large pictures": ("tile", "tile.overlap"),
    "Textures and panoramas": ("wrap",),
    "File": OUTPUT_FIELDS,
}  # fmt: skip
PRESETS = {"Truer": -50, "Balanced": 0, "Crisper": 50}
_TEXT_FIELD = "negative_prompt"  # for models that take text
_LABELS = {
    "lsa": "Preset", "lsa.ela_end": "Alpha acts until", "lsa.lla_start": "Beta acts from",
    "lsa.target": "Acts on",
    "wrap": "Sides that meet",
    "color": "Match colours", "gray": "Keep grey pictures grey", "tile": "Tile", "tile.overlap": "Overlap",
    "start": "Start from", "keep_metadata": "Keep EXIF, XMP and resolution", "bit_depth": "Bits per sample",
    "allow_truncated": "Take pictures that are cut off",
    "png_compression": "PNG compression", "tiff_compression": "TIFF compression",
}  # fmt: skip


def field_schema(field: str) -> dict[str, Any]:
    """The JSON schema of a field, with its description."""
    if field in OUTPUT_FIELDS:
        node = OutputConfig.model_json_schema()["properties"][field]
    else:
        schema = SamplingConfig.model_json_schema()
        node = schema
        for part in SAMPLING_FIELDS[field].split("."):
            properties = node["properties"][part]
            reference = properties.get("$ref") or (properties.get("allOf") or [{}])[0].get("$ref")
            node = schema["$defs"][reference.rpartition("/")[2]] if reference else properties
    return {key: value for key, value in node.items() if key not in ("title", "default")}


def settings(service: Service, defaults: SamplingConfig, takes_text: bool) -> dict[str, Any]:
    """All that the page has to know of this server and its model, in JSON's types."""
    limits = service.config
    most = {"steps": limits.max_steps, "tile": limits.max_tile}
    groups = [
        {
            "name": name,
            "fields": [_control(f, defaults, most) for f in fields if takes_text or f != _TEXT_FIELD],
        }
        for name, fields in GROUPS.items()
    ]
    return {
        "version": clearsr.__version__,
        "instance": service.instance,
        "upscale": defaults.upscale,
        "when_large": defaults.size.when_large,
        "detail": detail_of(defaults.lsa.strengths),
        "presets": [{"name": name, "detail": detail} for name, detail in PRESETS.items()],
        "groups": groups,
        "formats": [_format(name) for name in FORMATS],
        "limits": {
            "upload_mb": limits.max_upload_mb,
            "megapixels": limits.max_megapixels,
            "output_megapixels": limits.max_output_megapixels,
        },
        "examples": None if service.examples is None else [path.name for path in service.examples],
    }


def _format(name: str) -> dict[str, Any]:
    field = QUALITY_FIELDS.get(name)
    usual = None if field is None else OutputConfig.model_fields[field].default
    return {"name": name, "suffix": FORMATS[name], "quality": usual}


def _control(field: str, defaults: SamplingConfig, most: Mapping[str, int]) -> dict[str, Any]:
    """One setting of the page: its name, help and range."""
    schema = field_schema(field)
    parts = [schema, *schema.get("anyOf", ())]

    def first(key: str) -> Any:
        return next((part[key] for part in parts if key in part), None)

    choices = [value for part in parts for value in part.get("enum", [])]
    choices += [part["const"] for part in parts if "const" in part]
    kind = "choice" if choices else first("type")
    flags = {flag[2:].replace("-", "_"): flag for flag in SAMPLING_FLAGS}
    values: Any = OutputConfig() if field in OUTPUT_FIELDS else defaults
    for part in (field if field in OUTPUT_FIELDS else SAMPLING_FIELDS[field]).split("."):
        values = getattr(values, part)
    return {
        "field": field,
        "label": _LABELS.get(field, field.replace("_", " ").capitalize()),
        "help": schema.get("description", ""),
        "flag": flags.get(field, ""),
        "kind": kind,
        "choices": choices,
        "minimum": first("minimum"),
        "maximum": min(filter(None, (first("maximum"), most.get(field))), default=None),
        "step": first("multipleOf") or (1 if kind == "integer" else "any"),
        "default": values,
    }


_STATUSES = {
    400: "not an image, or a damaged one; text for a model that takes none",
    401: "the token is missing or wrong",
    408: "the upload took too long",
    413: "too many bytes or pixels",
    415: "not multipart/form-data",
    422: "a setting is not accepted, or the picture is large enough",
    429: "all places of the queue are taken; Retry-After says when to come again",
    500: "a bug of the server",
    503: "shutting down, or out of memory",
    504: "the picture took longer than the server allows",
    507: "the server's folder is full",
}
_NO_JOB = {404: "no such job", 409: "the job is not done yet"}
_TEXT = {"type": "string"}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"status": {"type": "integer"}, "code": _TEXT, "message": _TEXT},
        }
    },
}
_FORMAT = {
    "type": "string",
    "enum": [*FORMATS, "same"],
    "default": "png",
    "description": "same: the picture's",
}
_QUALITY = {"type": "integer", "minimum": 1, "maximum": 100, "description": "of jpg, webp and avif"}


def openapi() -> dict[str, Any]:
    """The description of the API, version 3.1."""
    fields: dict[str, Any] = {field: field_schema(field) for field in SAMPLING_FIELDS}
    fields |= {field: field_schema(field) for field in OUTPUT_FIELDS}
    text = "from -100 (truest) to 100 (crispest): alpha and beta where these are not given"
    fields["detail"] = {"type": "number", "minimum": -100, "maximum": 100, "description": text}
    one = {"format": _FORMAT, "quality": _QUALITY, **fields}
    json, events = "application/json", "text/event-stream"
    job = [{"name": "id", "in": "path", "required": True, "schema": _TEXT}]
    wanted = [_in_query("format", _FORMAT), _in_query("quality", _QUALITY)]
    sizes = [_in_query(name, {"type": "integer", "minimum": 1}) for name in ("width", "height")]
    numbers = [_in_query(name, schema) for name, schema in fields.items()]
    pictures = tuple(MEDIA_TYPES.values())
    paths = {
        "/v1/upscale": {"post": _operation("Upscale one picture, and wait for it", 200, pictures, form=one)},
        "/v1/jobs": {"post": _operation("Begin to upscale a picture", 201, (json,), form=fields)},
        "/v1/comparisons": {
            "post": _operation("Begin to compare alpha and beta on a picture", 201, (json,), form=fields)
        },
        "/v1/jobs/{id}": {
            "get": _operation("How far a job is", 200, (json,), job),
            "delete": _operation("Cancel a job, and delete what it has", 204, (), job),
        },
        "/v1/jobs/{id}/events": {
            "get": _operation("Events queued, step, saving, done and failed", 200, (events,), job)
        },
        "/v1/jobs/{id}/preview": {"get": _operation("An early look", 200, ("image/jpeg",), job)},
        "/v1/jobs/{id}/result": {
            "get": _operation("The result, in any format", 200, pictures, [*job, *wanted])
        },
        "/v1/jobs/{id}/cells/{number}": {
            "get": _operation(
                "A picture of a comparison", 200, ("image/png",), [*job, {**job[0], "name": "number"}]
            )
        },
        "/v1/look": {
            "post": _operation("A picture as a PNG that every browser shows", 200, ("image/png",), form={})
        },
        "/v1/estimate": {
            "get": _operation("Time, memory and command line of a run", 200, (json,), [*sizes, *numbers])
        },
        "/v1/examples/{name}": {
            "get": _operation(
                "A picture to try it with, by its name in the settings",
                200,
                ("image/png",),
                [{**job[0], "name": "name"}],
            )
        },
        "/v1/settings": {"get": _operation("What can be set, and the model's defaults", 200, (json,))},
        "/healthz": {"get": _operation("Whether the server takes pictures", 200, (json,))},
        "/metrics": {"get": _operation("Counters for Prometheus", 200, ("text/plain",))},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "ClearSR", "version": clearsr.__version__},
        "paths": paths,
    }


def _in_query(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": dict(schema)}


def _operation(
    summary: str,
    status: int,
    media: tuple[str, ...],
    parameters: list[dict[str, Any]] | None = None,
    form: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One route; with `form` it takes a picture and those fields."""
    binary = {"type": "string", "format": "binary"}
    content = {name: {"schema": {} if "json" in name else binary} for name in media}
    statuses = _STATUSES if form is not None else {401: _STATUSES[401], **(_NO_JOB if parameters else {})}
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": parameters or [],
        "responses": {
            str(status): {"description": summary, **({"content": content} if content else {})},
            **{
                str(code): {"description": text, "content": {"application/json": {"schema": _ERROR}}}
                for code, text in statuses.items()
            },
        },
    }
    if form is not None:
        picture = {**binary, "description": "the picture; its name is part of the seed"}
        schema = {
            "type": "object",
            "required": ["file"],
            "additionalProperties": False,
            "properties": {"file": picture, **form},
        }
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    return operation
