"""The weights of the frozen base, from safetensors only: a pickled file can run code.

A part is read whole or refused: what a file lacks is never filled with random numbers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from clearsr.errors import ClearSRError, first_line, optional
from clearsr.models.base_model import LAYOUT, locate_base, read_part_config, weights_stem

with optional("a base of Stable Diffusion"):
    import diffusers
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

PART_CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "image_encoder": CLIPVisionModelWithProjection,
}


def load_part(name: str, folder: Path, flag: str = "--base-model") -> Any:
    """One part with its weights in fp32, in evaluation mode.

    Args:
        name: key of `PART_CLASSES`.
        folder: of this part.
        flag: that the user gave it with.

    Raises:
        ClearSRError: no safetensors weights, or they are damaged or do not fit the part's `config.json`.
    """
    config = read_part_config(folder, flag)
    variant = _weights_variant(name, folder, flag)
    arguments: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "variant": variant}
    if name == "image_encoder":
        arguments["config"] = CLIPVisionConfig.from_dict(config)
    try:
        with _quiet():
            model, report = PART_CLASSES[name].from_pretrained(folder, local_files_only=True, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = first_line(error)
        raise ClearSRError(f"{flag} {folder}: cannot be loaded ({reason})") from None
    # Both libraries fill what the file lacks with random numbers and only warn.
    for problem in ("missing_keys", "mismatched_keys"):
        if absent := sorted(str(key) for key in report.get(problem) or ()):
            raise ClearSRError(
                f"{flag} {folder}: its weights do not fit its config.json ({problem.replace('_', ' ')}: "
                f"{', '.join(absent[:3])}{' and others' if len(absent) > 3 else ''})"
            )
    return model.float().eval()


def encode_text(source: str, text: str, revision: str | None = None) -> torch.Tensor:
    """The embedding of a prompt by the base's text encoder, 1×tokens×D, fp32.

    Raises:
        ClearSRError: the base has no text encoder or tokenizer.
    """
    folder = locate_base(source, revision, ("text_encoder", "tokenizer")).folder
    if not (folder / "tokenizer").is_dir():
        raise ClearSRError(f"--base-model {source}: its part tokenizer/ is missing; {LAYOUT}")
    encoder = load_part("text_encoder", folder / "text_encoder")
    try:
        with _quiet():
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:  # a damaged vocabulary is a plain Exception of tokenizers
        reason = first_line(error)
        raise ClearSRError(f"--base-model {folder / 'tokenizer'}: cannot be loaded ({reason})") from None
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids).last_hidden_state


def _weights_variant(name: str, folder: Path, flag: str) -> str | None:
    """The variant that the safetensors file is stored as: None for the plain name, else `fp16`."""
    stem = weights_stem(name)
    for variant, infix in ((None, ""), ("fp16", ".fp16")):
        single = folder / f"{stem}{infix}.safetensors"
        index = folder / f"{stem}.safetensors.index{infix}.json"
        if single.is_file() or index.is_file():
            return variant
    found = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".ckpt", ".safetensors"))
    has = f"only {', '.join(found)}" if found else "no weights"
    raise ClearSRError(
        f"{flag} {folder}: has {has}; accepted: {stem}.safetensors (safetensors, never pickled files)"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and loading reports off the terminal; we check what matters."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    had_bars = transformers.utils.logging.is_progress_bar_enabled()
    try:
        for library in libraries:
            library.set_verbosity(logging.CRITICAL)
        transformers.utils.logging.disable_progress_bar()
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        if had_bars:
            transformers.utils.logging.enable_progress_bar()
