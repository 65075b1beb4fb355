"""The page: its components, and which of them starts what. The work is in `page_actions.py`."""

from pathlib import Path
from typing import Any, get_args

import gradio as gr
from fastapi import FastAPI

from clearsr.config.output import FORMATS, OutputConfig
from clearsr.config.sampling import ColorMethod, GrayRule, SchedulerName
from clearsr.evaluation.demo import write_examples
from clearsr.image import IMAGE_SUFFIXES
from clearsr.web.api import Service
from clearsr.web.fields import detail_of
from clearsr.web.look import CSS, HEAD, make_theme, note
from clearsr.web.page_actions import NO_PICTURE, Actions
from clearsr.web.page_parts import Page

# On a phone the status is below the button; what is to be sent goes through.
_SHOW_STATUS = """(...values) => {
  const status = document.querySelector('#status'), top = status.getBoundingClientRect().top;
  if (top < 0 || top > innerHeight / 2) status.scrollIntoView();
  return values;
}"""
PRESETS = {"Truer": -50, "Balanced": 0, "Crisper": 50}


def mount_page(app: FastAPI, service: Service) -> None:
    """Add the page to the server, at `/`."""
    limits = service.upscaler.limits
    blocks = build_page(service)
    blocks.queue(max_size=4 * limits.places, default_concurrency_limit=None)
    gr.mount_gradio_app(
        app, blocks, path="/", allowed_paths=[], max_file_size=int(limits.max_upload_mb * 1e6),
        show_error=True, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        footer_links=["api"], theme=make_theme(), css=CSS,
    )  # fmt: skip


def build_page(service: Service) -> gr.Blocks:
    """All components, wired."""
    examples = write_examples(service.storage.examples)
    # Cached files are deleted by `Storage`.
    with gr.Blocks(title="ClearSR", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(HEAD, elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                inputs, shown = _inputs(service, examples)
                estimate = gr.HTML(note(NO_PICTURE), elem_id="estimate")
                with gr.Row(elem_id="actions"):
                    run = gr.Button("Upscale", variant="primary", elem_id="run", scale=3)
                    cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", visible=False, scale=1)
                with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                    inputs |= _sampling_inputs(service)
                    inputs |= _file_inputs()
            with gr.Column(scale=7, min_width=320):
                outputs = _outputs()
        page = Page(**inputs, **outputs, estimate=estimate, run=run, cancel=cancel)
        _wire(page, Actions(service, page), blocks)
        if shown is not None:
            _offer(shown, page, [str(path) for path in examples])
    return blocks


def _offer(shown: gr.Gallery, page: Page, paths: list[str]) -> None:
    """A click on an example puts it where a dropped picture goes."""

    def choose(event: gr.SelectData) -> list[str]:
        return [paths[int(event.index)]]

    shown.select(choose, None, page.pictures, queue=False, api_visibility="private", show_progress="hidden")


def _examples(paths: list[Path]) -> gr.Gallery | None:
    """A row of pictures to try; None if there are none."""
    if not paths:
        return None
    gr.HTML(note("Or try one of these:"), padding=False)
    return gr.Gallery(
        [str(path) for path in paths], show_label=False, columns=4, height=110, allow_preview=False,
        interactive=False, elem_id="examples", buttons=[], object_fit="cover",
    )  # fmt: skip


def _inputs(service: Service, examples: list[Path]) -> tuple[dict[str, Any], gr.Gallery | None]:
    """The left column: pictures and settings, by the fields of `Page`, and the examples."""
    defaults = service.upscaler.pipeline.defaults
    parts: dict[str, Any] = {
        "pictures": gr.File(
            label="Pictures",
            file_count="multiple",
            file_types=sorted(IMAGE_SUFFIXES),
            height=150,
            elem_id="pictures",
        ),
    }
    shown = _examples(examples)
    parts["detail"] = gr.Slider(
        -100, 100, detail_of(defaults.lsa.strengths), step=5, label="Fidelity ↔ detail", elem_id="detail",
        info="left: true to the input · right: crisper",
    )  # fmt: skip
    with gr.Row(elem_id="presets"):
        for name, position in PRESETS.items():
            button = gr.Button(name, size="sm", variant="secondary")
            button.click(
                lambda position=position: position,
                None,
                parts["detail"],
                queue=False,
                api_visibility="private",
            )
    parts["upscale"] = gr.Slider(
        1, 8, defaults.upscale, step=0.5, label="Upscale", elem_id="upscale", info="times as wide and high"
    )
    return parts, shown


def _sampling_inputs(service: Service) -> dict[str, Any]:
    """What else there is to set of a run, by the fields of `Page`."""
    defaults, limits = service.upscaler.pipeline.defaults, service.upscaler.limits
    parts: dict[str, Any] = {}
    parts["steps"] = gr.Slider(
        0, min(max(50, defaults.steps), limits.max_steps), defaults.steps, step=1, label="Steps",
        elem_id="steps", info="0 restores without generating anything",
    )  # fmt: skip
    parts["seed"] = gr.Number(
        defaults.seed, label="Seed", precision=0, elem_id="seed", info="another number draws another texture"
    )
    with gr.Row():
        parts["alpha"] = gr.Textbox("", label="Alpha (truer)", max_lines=1, min_width=120)
        parts["beta"] = gr.Textbox("", label="Beta (crisper)", max_lines=1, min_width=120)
    gr.HTML(note("Alpha and beta: 0 to 1 each; empty, they follow from the control above. Both 0: off."))
    with gr.Row():
        parts["scheduler"] = gr.Dropdown(
            list(get_args(SchedulerName)), value=defaults.scheduler, label="Scheduler", min_width=120
        )
        parts["start"] = gr.Dropdown(
            [("input and noise", "lr"), ("noise alone", "noise")],
            value=defaults.start, label="Start from", min_width=120,
        )  # fmt: skip
    with gr.Row():
        parts["noise_scale"] = gr.Slider(
            0, 2, defaults.noise_scale, step=0.05, label="Noise scale", min_width=140
        )
        parts["start_timestep"] = gr.Slider(
            1, 999, defaults.start_timestep, step=1, label="Start timestep", min_width=140
        )
    parts["guidance_scale"] = gr.Slider(
        1, 30, defaults.guidance_scale, step=0.5, label="Guidance scale", info="1 is off; more takes longer"
    )
    parts["negative_prompt"] = gr.Textbox(
        defaults.negative_prompt, label="Negative prompt", visible=service.upscaler.takes_text,
        info="what the picture must not look like; acts with a guidance scale above 1", elem_id="negative",
    )  # fmt: skip
    with gr.Row():
        parts["color"] = gr.Dropdown(
            list(get_args(ColorMethod)), value=defaults.color, label="Colour match", min_width=120
        )
        parts["gray"] = gr.Dropdown(
            list(get_args(GrayRule)), value=defaults.gray, label="Keep grey pictures grey", min_width=120
        )
        parts["tile"] = gr.Slider(
            32, limits.max_tile, defaults.tile.size, step=16, label="Tile, in latents", min_width=140
        )
    return parts


def _file_inputs() -> dict[str, Any]:
    """How the results are written, by the fields of `Page`."""
    output = OutputConfig()
    with gr.Row():
        depth = gr.Dropdown(
            [("as the input", "input"), ("8", 8), ("16", 16)],
            value=output.bit_depth, label="Bits per sample", min_width=120,
        )  # fmt: skip
        second = gr.Dropdown(
            [format for format in FORMATS if format != "png"], value="jpg", label="Second download",
            min_width=120, elem_id="format",
        )  # fmt: skip
    quality = gr.Slider(1, 100, output.jpeg_quality, step=1, label="Quality", info="of JPEG, WebP and AVIF")
    metadata = gr.Checkbox(output.keep_metadata, label="Keep EXIF, XMP and resolution", elem_id="metadata")
    return {
        "bit_depth": depth, "keep_metadata": metadata, "copy_format": second, "copy_quality": quality,
    }  # fmt: skip


def _outputs() -> dict[str, Any]:
    """The right column: the result and what to do with it."""
    status = gr.HTML(note("The result appears here."), elem_id="status")
    slider = gr.ImageSlider(
        label="Left: the input, enlarged · right: ClearSR",
        format="png",
        interactive=False,
        max_height=640,
        buttons=["fullscreen"],
        elem_id="slider",
    )
    with gr.Row(elem_id="downloads"):
        png = gr.DownloadButton("Download PNG", variant="primary", interactive=False, elem_id="png")
        copy = gr.DownloadButton("Download JPG", interactive=False, elem_id="copy")
    summary = gr.HTML("", elem_id="summary")
    gallery = gr.Gallery(
        label="Results",
        columns=4,
        height="auto",
        interactive=False,
        visible=False,
        elem_id="gallery",
        allow_preview=False,
    )
    done = gr.State([])
    with gr.Accordion("Compare settings: alpha × beta", open=False, elem_id="comparison"):
        gr.HTML(note("The middle of the first picture with several strengths of Latent Space Adjustment."))
        compare = gr.Button("Draw the comparison", elem_id="compare")
        sheet = gr.Image(
            show_label=False,
            format="png",
            interactive=False,
            elem_id="sheet",
            buttons=["fullscreen", "download"],
        )
    return {
        "status": status, "slider": slider, "png": png, "copy": copy, "summary": summary, "gallery": gallery,
        "done": done, "compare": compare, "sheet": sheet,
    }  # fmt: skip


def _wire(page: Page, actions: Actions, blocks: gr.Blocks) -> None:
    """Which event starts what."""
    quiet: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    for component in (page.pictures, page.upscale, page.steps):
        component.change(
            actions.estimate,
            [page.pictures, page.upscale, page.steps],
            page.estimate,
            preprocess=False,
            **quiet,
        )
    # `preprocess` would drop the files' own names, which the seed depends on.
    long: dict[str, Any] = {
        "preprocess": False,
        "concurrency_limit": None,
        "api_visibility": "private",
        "show_progress": "hidden",
    }
    page.run.click(actions.run, page.inputs(), page.outputs(), js=_SHOW_STATUS, **long)
    page.compare.click(
        actions.compare, page.inputs(), [page.status, page.sheet, page.cancel, page.compare], **long
    )
    page.cancel.click(actions.cancel, None, None, **quiet)
    page.gallery.select(actions.show, [page.done], [page.slider, page.png, page.copy, page.summary], **quiet)
    blocks.unload(actions.cancel)
    # What `gradio_client` calls: the same, without the page around it.
    one = gr.File(visible=False, label="picture")
    settings = gr.JSON(visible=False, label="settings")
    button, result = gr.Button(visible=False), gr.File(visible=False, label="result")
    button.click(
        actions.upscale_one, [one, page.detail, page.upscale, page.seed, settings], result,
        api_name="upscale", preprocess=False, concurrency_limit=None,
        api_description="Upscale one picture. `settings` takes the other fields of POST /v1/upscale.",
    )  # fmt: skip
