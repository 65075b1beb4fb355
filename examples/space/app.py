"""A Hugging Face Space: a picture in, a slider between it and its enlargement out."""

import functools

import gradio as gr
from PIL import Image

from clearsr import ClearSRPipeline

MAX_SIDE = 1024  # pixels of the input; a free Space has two cores


@functools.cache
def pipeline() -> ClearSRPipeline:
    return ClearSRPipeline.from_pretrained("compact")


def upscale(picture: Image.Image | None, factor: float, lsa: str, seed: float) -> tuple:
    if picture is None:
        raise gr.Error("Choose a picture first.")
    if max(picture.size) > MAX_SIDE:
        raise gr.Error(f"At most {MAX_SIDE} pixels a side here; this has {picture.width} x {picture.height}.")
    picture = picture.convert("RGB")
    result = pipeline()(picture, upscale=factor, seed=int(seed), lsa={"preset": lsa})
    return picture.resize(result.size, Image.Resampling.BICUBIC), result


with gr.Blocks(title="ClearSR") as demo:
    gr.Markdown("# ClearSR\nLarger, sharper photographs that stay true to the original.")
    with gr.Row():
        with gr.Column():
            picture = gr.Image(type="pil", label="Picture")
            factor = gr.Slider(1, 4, 4, step=0.5, label="Times as large")
            lsa = gr.Radio(["fidelity", "clearsr", "off"], value="clearsr", label="Latent Space Adjustment")
            seed = gr.Number(0, precision=0, label="Seed")
            button = gr.Button("Upscale", variant="primary")
        result = gr.ImageSlider(label="Before and after", format="png")
    button.click(upscale, [picture, factor, lsa, seed], result)

if __name__ == "__main__":
    demo.launch()
