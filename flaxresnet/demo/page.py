"""A page on which a run can be tried: drop a picture or use the camera, see the classes and where they come from."""

import atexit
import html
import io
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flaxresnet.classifier import Classifier
from flaxresnet.data.dataset import Dataset
from flaxresnet.data.decode import decode, formats
from flaxresnet.demo.middleware import PathRedactionMiddleware, UploadLimitMiddleware
from flaxresnet.runtime.errors import UserError
from flaxresnet.visualize.grad_cam import GradCAM
from flaxresnet.visualize.heatmap import display_size, overlay

MAX_UPLOAD = 20 * 2**20  # bytes
MAX_REQUEST = MAX_UPLOAD + 2**20
KEPT = (600, 3600)  # seconds: how often uploads are looked through, and how old they get
MAX_KEPT = 200 * 2**20, 1000  # bytes and files of uploads that are kept at all
MAX_PIXELS = 50_000_000  # of an uploaded picture; a telephone's have 12 to 48 million
MAX_DEEP_PIXELS = 12_000_000  # of one with more than 8 bits a colour, which no telephone makes
MAX_WAITING = 64  # requests; more are told to come back
MAX_EXAMPLES = 12
UNLIKE = "This picture is unlike the training images; take the answer with care."
HINT = "Drop a picture, or use the camera."


def make_page(classifier: Classifier, title: str, examples: Dataset | None) -> Any:
    """The page, a `gradio.Blocks`, for `serve`.

    Args:
      classifier: what answers.
      title: over the page.
      examples: labelled images, of which some are offered to try.

    Raises:
      UserError: gradio is not installed.
    """
    gr = _gradio()
    explainer = GradCAM(classifier)

    def answer(path: str | None) -> tuple[dict[str, float] | None, np.ndarray | None, str]:
        """What the page shows of an uploaded file: probabilities, the overlay, a sentence."""
        if path is None:
            return None, None, HINT
        try:
            photo = read_upload(Path(path))
        except UserError as error:
            return None, None, str(error)
        image = classifier.preprocessing.load(photo)
        answers = classifier.predict_batch(image[None])
        _, maps = explainer.explain(image[None])
        probabilities = dict(zip(classifier.class_names, answers.probabilities[0].tolist(), strict=True))
        is_ood = answers.is_ood is not None and bool(answers.is_ood[0])
        seen = classifier.preprocessing.crop_pixels(photo)
        return probabilities, overlay(display_size(seen), maps[0]), UNLIKE if is_ood else ""

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=KEPT) as blocks:
        gr.HTML(f"<h1>{html.escape(title)}</h1>")
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="filepath", label="Picture", sources=["upload", "webcam", "clipboard"])
                # Gradio would open the file itself, and name its place on this machine where it cannot.
                photo.preprocess = lambda payload: None if payload is None else payload.path
                photo.async_move_resource_to_block_cache = _reject_urls(photo)
                if examples is not None:
                    with tempfile.TemporaryDirectory() as folder:  # Gradio takes copies
                        files = [*_save_examples(examples, Path(folder))]
                        gr.Examples(files, inputs=photo, label="Test images", examples_per_page=MAX_EXAMPLES)
            with gr.Column():
                note = gr.Markdown(HINT, elem_id="note")
                label = gr.Label(label="Classes", num_top_classes=5, elem_id="classes")
                heat = gr.Image(
                    label="What speaks for the first", interactive=False, format="png", buttons=[], elem_id="heat"
                )
        photo.change(answer, photo, [label, heat, note], api_visibility="private", show_progress="minimal")
    return blocks.queue(max_size=MAX_WAITING, api_open=False)


def serve(blocks: Any, host: str, port: int, wait: bool = True) -> str:
    """Serves a page.

    Args:
      blocks: from `make_page`.
      host: the address to listen at; "127.0.0.1" is this computer alone.
      port: 0 is any that is free.
      wait: until it is stopped.

    Returns:
      Its address.

    Raises:
      UserError: the address cannot be listened at.
    """
    gr = _gradio()
    from starlette.middleware import Middleware

    _check_host(host)
    # Gradio asks itself whether it is there, for which no proxy is of use.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", host)))
    files = _folder()
    bounds = Middleware(
        UploadLimitMiddleware, folder=files, largest=MAX_REQUEST, most=MAX_KEPT[0], most_files=MAX_KEPT[1]
    )
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from elsewhere
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            quiet=True,
            show_error=False,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            enable_monitoring=False,
            footer_links=[],
            ssr_mode=False,
            app_kwargs={"middleware": [bounds, Middleware(PathRedactionMiddleware, folder=files)]},
            theme=gr.themes.Default(**fonts),
        )
    except Exception as error:  # what Gradio raises for a port that is taken, a proxy in between, …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError):  # Gradio's words for it are about its own arguments
            reason = "something else listens there"
        raise UserError(f"--host {host} --port {port} cannot be used ({reason}); give another --port") from None
    print(f"{address} (Ctrl-C ends it)", flush=True)
    if wait:
        blocks.block_thread()
    return address


def _check_host(host: str) -> None:
    """Raises UserError where this computer has no such address; Gradio's server would say so and go on waiting."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, ValueError) as error:  # ValueError: no name at all
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host!r} cannot be listened at ({reason}); give an address of this computer, such as 127.0.0.1 or "
            "0.0.0.0"
        ) from None


def read_upload(path: Path) -> np.ndarray:
    """An uploaded file as (height, width, 3) uint8 RGB.

    Raises UserError, which names nothing of this machine, where it is no picture or is too large.
    """
    try:
        if path.stat().st_size > MAX_UPLOAD:
            raise UserError(f"This file is too large; give one of up to {MAX_UPLOAD // 2**20} MiB.")
        data = io.BytesIO(path.read_bytes())
    except FileNotFoundError:  # made room for later ones while this one waited
        raise UserError("This picture is not here any more; upload it again.") from None
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(data, formats=formats()) as file:
            (width, height), deep = file.size, file.mode.startswith(("I", "F"))
        if width * height <= (most := MAX_DEEP_PIXELS if deep else MAX_PIXELS):
            return decode(data)
    except Exception:  # a decoder may raise anything for a damaged file
        raise UserError("This file cannot be read as a picture; give a JPEG, PNG or the like.") from None
    raise UserError(f"This picture has {width}×{height} pixels; give one of up to {most // 10**6} million.")


def _reject_urls(component: Any) -> Any:
    """The component's own way to take a file, but that an address in a request is not fetched."""
    take = component.async_move_resource_to_block_cache

    async def checked(place: Any) -> Any:
        if str(place).lower().startswith(("http:", "https:")):
            raise ValueError("only files that were uploaded are taken")
        return await take(place)

    return checked


def _save_examples(examples: Dataset, folder: Path) -> Iterator[str]:
    """Some images of each class as files."""
    classes = len(examples.class_names)
    each = max(1, MAX_EXAMPLES // classes)
    chosen = [place for c in range(classes) for place in np.flatnonzero(examples.labels == c)[:each]]
    for number, place in enumerate(chosen[:MAX_EXAMPLES]):
        Image.fromarray(examples.images[place]).save(folder / f"{number}.png")
        yield str(folder / f"{number}.png")


@cache
def _folder() -> Path:
    """Where Gradio keeps files, of this process alone; gone when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="flaxresnet-demo-")
    atexit.register(folder.cleanup)
    return Path(folder.name).resolve()


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    os.environ["GRADIO_TEMP_DIR"] = str(_folder())  # read whenever it is needed
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the demo needs {error.name}; install it with: pip install 'flaxresnet[demo]'") from None
    return gradio
