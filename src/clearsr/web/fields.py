"""What a client may set, and how it becomes the configurations that the command line builds too.

`detail` is the page's main control: one number from fidelity (-100) to detail (100) for alpha and beta of
Latent Space Adjustment. The paper's two settings lie on it: ClearSR at 0, ClearSR* at -50.
"""

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from clearsr.config.base import FrozenConfig, build_config, merge, nested, read_number
from clearsr.config.output import FORMAT_NAMES, FORMATS, SAME, OutputConfig, suffix_for
from clearsr.config.sampling import LSA_PRESETS, SAMPLING_FLAGS, SamplingConfig, check_sizes, with_given
from clearsr.config.serving import ServingConfig
from clearsr.errors import ClearSRError
from clearsr.web.errors import RequestError

_NOT_OFFERED = {"max_memory"}  # how much of its memory the server takes is its owner's affair


def _sampling_fields() -> dict[str, str]:
    """Field of a request -> dotted path in SamplingConfig: the flags of the command line by their names,
    then what `--set` alone reaches there.
    """
    named = {flag[2:].replace("-", "_"): path for flag, path in SAMPLING_FLAGS.items()}
    others = {path: path for path in _leaves(SamplingConfig) if path not in named.values()}
    return {field: path for field, path in (named | others).items() if path not in _NOT_OFFERED}


def _leaves(schema: type[FrozenConfig], prefix: str = "") -> Iterator[str]:
    """Dotted paths of the fields that are no section."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, FrozenConfig):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


SAMPLING_FIELDS = _sampling_fields()
OUTPUT_FIELDS = ("bit_depth", "keep_metadata", "png_compression", "tiff_compression", "allow_truncated")
RUN_FIELDS = {"detail", *SAMPLING_FIELDS, *OUTPUT_FIELDS}
FIELDS = {"format", "quality", *RUN_FIELDS}
_TEXT_FIELDS = ("negative_prompt", "fit")  # never read as numbers
MEDIA_TYPES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".tif": "image/tiff",
    ".avif": "image/avif",
}  # fmt: skip
QUALITY_FIELDS = {"jpg": "jpeg_quality", "webp": "webp_quality", "avif": "avif_quality"}

# (detail, alpha, beta) between which both go in straight lines.
DIAL = (
    (-100.0, 0.25, 0.0),  # of the compact model x_lr, and nothing else that shows
    (-75.0, 0.08, 0.0),
    (-50.0, *LSA_PRESETS["fidelity"]),
    (0.0, *LSA_PRESETS["clearsr"]),
    (100.0, 0.0, 0.01),
)


def strengths_of(detail: float) -> tuple[float, float]:
    """(alpha, beta) for a position from -100 (as true as possible) to 100 (as crisp as possible)."""
    detail = min(max(detail, DIAL[0][0]), DIAL[-1][0])
    for (left, *low), (right, *high) in zip(DIAL, DIAL[1:], strict=False):
        if detail <= right:
            share = (detail - left) / (right - left)
            alpha, beta = (round(a + share * (b - a), 4) for a, b in zip(low, high, strict=True))
            return alpha, beta
    raise AssertionError("the last point closes the range")


def detail_of(strengths: tuple[float, float]) -> int:
    """The position on the dial that is nearest to (alpha, beta)."""
    alpha, beta = strengths

    def distance(position: int) -> float:
        a, b = strengths_of(position)
        return (a - alpha) ** 2 + (b - beta) ** 2

    return min(range(-100, 101, 5), key=distance)


def sampling_of(base: SamplingConfig, fields: Mapping[str, Any], limits: ServingConfig) -> SamplingConfig:
    """The model's settings with those of a request over them; text is read as numbers where it looks so.

    Raises:
        RequestError: 422, a value is not accepted.
    """
    values: dict[str, Any] = {}
    if (detail := fields.get("detail")) not in (None, ""):
        fields = {**_of_dial(_read(detail)), **{key: fields[key] for key in fields if fields[key] != ""}}
    for field, path in SAMPLING_FIELDS.items():
        if (value := fields.get(field)) not in (None, ""):
            values = merge(values, nested(path, value if field in _TEXT_FIELDS else _read(value)))
    if limits.max_memory is not None:
        values["max_memory"] = limits.max_memory
    try:
        check_sizes(values, {path: field for field, path in SAMPLING_FIELDS.items()})
        sampling = build_config(SamplingConfig, with_given(base.model_dump(exclude_unset=True), values))
    except ClearSRError as error:
        raise bad_setting(in_field_names(_in_fields(str(error)))) from None
    if sampling.steps > limits.max_steps:
        raise bad_setting(f"steps: at most {limits.max_steps} are accepted here (got {sampling.steps})")
    if sampling.tile.size > limits.max_tile:
        raise bad_setting(f"tile: at most {limits.max_tile} is accepted here (got {sampling.tile.size})")
    return sampling


def _of_dial(detail: Any) -> dict[str, float]:
    """The dial's strengths, where they are not given."""
    if not isinstance(detail, int | float) or not DIAL[0][0] <= detail <= DIAL[-1][0]:
        raise bad_setting(f"detail: must be a number from -100 to 100 (got {str(detail)[:50]!r})")
    alpha, beta = strengths_of(detail)
    return {"alpha": alpha, "beta": beta}


def check_fields(names: Iterable[str], known: Collection[str]) -> None:
    """See that all of these are known.

    Raises:
        RequestError: 422, one is none.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise bad_setting(f"{unknown[0]}: no such field; known: {', '.join(sorted(known))}")


def output_of(fields: Mapping[str, Any], source: str) -> tuple[str, OutputConfig]:
    """The suffix of the result and how it is written; `source` is the picture's name.

    Raises:
        RequestError: 422, a value is not accepted.
    """
    name = str(fields.get("format") or "png").lower()
    if name == "same":
        name = suffix_for(source, SAME)[1:]
    if name not in FORMAT_NAMES:
        raise bad_setting(f"format: accepted are {', '.join(FORMATS)}, same (got {name!r})")
    name = FORMAT_NAMES[name]
    values = {key: _read(fields[key]) for key in OUTPUT_FIELDS if fields.get(key) not in (None, "")}
    if (quality := fields.get("quality")) not in (None, ""):
        if name not in QUALITY_FIELDS:
            raise bad_setting(f"quality: {name} is lossless; leave it out, or use jpg, webp or avif")
        values[QUALITY_FIELDS[name]] = _read(quality)
        if name == "webp":
            values["webp_lossless"] = False
    try:
        return FORMATS[name], build_config(OutputConfig, values)
    except ClearSRError as error:
        raise bad_setting(str(error).replace(QUALITY_FIELDS.get(name, "-"), "quality")) from None


def command_line(name: str, sampling: SamplingConfig, base: SamplingConfig, output: OutputConfig) -> str:
    """What to type for the same bytes: upscale, seed, and what differs from `base`, the model's own."""
    words = ["clearsr", "upscale", f"./{name}" if name.startswith("-") else name]
    flags = {path: flag for flag, path in SAMPLING_FLAGS.items()}
    for path in SAMPLING_FIELDS.values():
        value, usual = _value_at(sampling, path), _value_at(base, path)
        if path == "upscale" and sampling.size.wish is not None:
            continue
        if path in ("upscale", "seed") or value != usual:
            text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
            words += [flags[path], text] if path in flags else ["--set", f"{path}={text}"]
    for field in OUTPUT_FIELDS:
        if (value := getattr(output, field)) != OutputConfig.model_fields[field].default:
            text = str(value).lower()
            words += ["--bit-depth", text] if field == "bit_depth" else ["--set", f"output.{field}={text}"]
    return shlex.join(words)


def curl_line(address: str, name: str, fields: Mapping[str, Any], needs_token: bool = False) -> str:
    """What to type to have it from this server, with those settings."""
    quoted = name.replace("\\", r"\\").replace('"', r"\"")
    words = ["-F", f'file=@"{quoted}"' if re.search(r'[;,"\\]', name) else f"file=@{name}"]
    for key, value in fields.items():
        if value not in (None, ""):
            words += ["--form-string" if key in _TEXT_FIELDS else "-F", f"{key}={value}"]
    target = f"{name.rpartition('.')[0] or name}_large.png"
    token = '-H "Authorization: Bearer $CLEARSR_TOKEN" ' if needs_token else ""  # for the shell to fill in
    return f"curl {token}{shlex.join([*words, '-o', target, f'{address}v1/upscale'])}"


def _value_at(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part)
    return config


def bad_setting(message: str) -> RequestError:
    """422 with that message."""
    return RequestError(422, "bad_setting", " ".join(message.split())[:500])


def in_field_names(message: str) -> str:
    """A message of the library with the request's fields in place of flags."""

    def field_of(flag: re.Match[str]) -> str:
        field = flag[0][2:].replace("-", "_")
        return field if field in FIELDS else flag[0]

    return re.sub(r"--[a-z-]+", field_of, message)


def _in_fields(message: str) -> str:
    """pydantic's report in the names that the request used."""
    for field, path in SAMPLING_FIELDS.items():
        if field != path:
            message = message.replace(f"{path}: ", f"{field}: ")
    return message


def _read(value: Any) -> Any:
    """A number where text looks like one."""
    return read_number(value) if isinstance(value, str) else value
