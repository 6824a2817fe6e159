"""A page of gradio: an image and words in, segments or boxes out. For a Space of the Hugging Face hub."""

import os
import subprocess
import sys

# pip cannot bring Detectron2; one that is there is kept.
subprocess.run([sys.executable, "-m", "clipself_seg", "install-detectron2"], check=True)

import gradio as gr  # noqa: E402
import safehttpx  # noqa: E402

import clipself_seg  # noqa: E402


async def refused(*_, **__):
    raise ValueError("an address is not fetched: upload the image")


# All that gradio fetches for a visitor who names an address in place of an image goes through these two.
safehttpx.get = safehttpx.async_validate_url = refused

model = clipself_seg.load(os.environ.get("MODEL") or None)


def find(image, words):
    """The regions of an image (H, W, 3) uint8."""
    if image is None:
        raise gr.Error("Give an image first.")
    try:
        result = model(image, words)
    except clipself_seg.InputError as error:
        raise gr.Error(str(error)) from None
    boxes, labels, scores, masks = result.regions()
    places = boxes.astype(int).tolist() if masks is None else masks
    names = [f"{result.names[label]} {score:.2f}" for label, score in zip(labels, scores)]
    return image, list(zip(places, names))


with gr.Blocks(title="clipself_seg", analytics_enabled=False, delete_cache=(600, 600)) as demo:
    gr.Markdown("# Segment anything you can name")
    image = gr.Image(type="numpy", sources=["upload", "webcam", "clipboard"])
    words = gr.Textbox("dog|puppy, cat, grass, sky", label="Words; | separates synonyms")
    button, found = gr.Button("Find"), gr.AnnotatedImage()
    button.click(find, [image, words], found, api_name="find", concurrency_limit=1)

if __name__ == "__main__":
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
    demo.queue(max_size=32).launch(
        theme=gr.themes.Base(**fonts), run_history=False, ssr_mode=False, max_file_size="20mb"
    )
