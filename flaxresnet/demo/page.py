"""Web page that classifies images from a file or the camera, with a Grad-CAM heatmap."""

import atexit
import html
import io
import os
import socket
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flaxresnet.classifier import Classifier
from flaxresnet.data.dataset import Dataset
from flaxresnet.data.decode import decode, open_image
from flaxresnet.demo.middleware import PathRedactionMiddleware, UploadLimitMiddleware
from flaxresnet.runtime.errors import UserError
from flaxresnet.visualize.grad_cam import GradCAM
from flaxresnet.visualize.heatmap import display_size, overlay

MAX_UPLOAD = 20 * 2**20  # bytes
MAX_REQUEST = MAX_UPLOAD + 2**20  # bytes
DELETE_CACHE = (600, 3600)  # seconds: interval of the cleanup, and maximum age of uploads
MAX_STORED_BYTES = 200 * 2**20  # of all uploads together
MAX_STORED_FILES = 1000
MAX_PIXELS = 50_000_000  # of an uploaded image; phone cameras have 12 to 48 million
MAX_DEEP_PIXELS = 12_000_000  # of an image with more than 8 bits per channel, which needs more memory
MAX_WAITING = 64  # queued requests; Gradio rejects more
MAX_EXAMPLES = 12
OOD_NOTE = "This image is out of distribution: it is unlike the training images, so the prediction may be wrong."
HINT = "Drop an image, or use the camera."


def make_page(classifier: Classifier, title: str, examples: Dataset | None) -> Any:
    """Returns the page, a `gradio.Blocks`, for `serve`.

    Args:
      classifier: the classifier to run.
      title: heading of the page.
      examples: labeled images; the page offers up to 12 of them. None for no examples.

    Raises:
      UserError: gradio is not installed.
    """
    gr = _gradio()
    explainer = GradCAM(classifier)

    def classify(path: str | None) -> tuple[dict[str, float] | None, np.ndarray | None, str]:
        """Returns the probabilities, the heatmap and a note for an uploaded file."""
        if path is None:
            return None, None, HINT
        try:
            photo = read_upload(Path(path))
        except UserError as error:
            return None, None, str(error)
        image = classifier.preprocessing.load(photo)
        prediction = classifier.predict_batch(image[None])
        _, maps = explainer.explain(image[None])
        probabilities = dict(zip(classifier.class_names, prediction.probabilities[0].tolist(), strict=True))
        is_ood = prediction.is_ood is not None and bool(prediction.is_ood[0])
        cropped = classifier.preprocessing.crop_pixels(photo)
        return probabilities, overlay(display_size(cropped), maps[0]), OOD_NOTE if is_ood else ""

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=DELETE_CACHE) as blocks:
        gr.HTML(f"<h1>{html.escape(title)}</h1>")
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="filepath", label="Image", sources=["upload", "webcam", "clipboard"])
                # Gradio would decode the file itself, and show its local path in the error message.
                photo.preprocess = lambda payload: None if payload is None else payload.path
                photo.async_move_resource_to_block_cache = _reject_urls(photo)
                if examples is not None:
                    with tempfile.TemporaryDirectory() as folder:  # Gradio copies the files
                        files = _save_examples(examples, Path(folder))
                        gr.Examples(files, inputs=photo, label="Test images", examples_per_page=MAX_EXAMPLES)
            with gr.Column():
                note = gr.Markdown(HINT, elem_id="note")
                label = gr.Label(label="Classes", num_top_classes=5, elem_id="classes")
                heat = gr.Image(
                    label="Evidence for the top class (Grad-CAM)",
                    interactive=False,
                    format="png",
                    buttons=[],
                    elem_id="heat",
                )
        photo.change(classify, photo, [label, heat, note], api_visibility="private", show_progress="minimal")
    return blocks.queue(max_size=MAX_WAITING, api_open=False)


def serve(blocks: Any, host: str, port: int) -> str:
    """Starts a server for a page, in a background thread, and returns its address.

    Args:
      blocks: the page, from `make_page`; `blocks.block_thread()` waits until the server stops.
      host: address to listen on. Only this computer can reach "127.0.0.1".
      port: port to listen on; 0 selects a free port.

    Raises:
      UserError: gradio is not installed, or the server cannot listen on the address.
    """
    gr = _gradio()
    from starlette.middleware import Middleware

    _check_host(host)
    # Gradio sends a request to its own server, which must not go through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", host)))
    folder = _upload_folder()
    upload_limit = Middleware(
        UploadLimitMiddleware,
        folder=folder,
        max_request=MAX_REQUEST,
        max_bytes=MAX_STORED_BYTES,
        max_files=MAX_STORED_FILES,
    )
    path_redaction = Middleware(PathRedactionMiddleware, folder=folder)
    local_fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
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
            app_kwargs={"middleware": [upload_limit, path_redaction]},
            theme=gr.themes.Default(**local_fonts),
        )
    except Exception as error:  # Gradio raises several types, for example for a proxy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError):  # Gradio's message names its own arguments
            reason = "another program listens on the port"
        raise UserError(f"--host {host} --port {port} cannot be used ({reason}); give another --port") from None
    return address


def _check_host(host: str) -> None:
    """Raises UserError if this computer has no such address, because Gradio's server would log an error and hang."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, ValueError) as error:  # ValueError: not a valid host name
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host!r} is not an address of this computer ({reason}); give one such as 127.0.0.1 or 0.0.0.0"
        ) from None


def read_upload(path: Path) -> np.ndarray:
    """Returns an uploaded image as (height, width, 3) uint8 RGB.

    Raises:
      UserError: the file is not an image or is too large. The message contains no path.
    """
    try:
        if path.stat().st_size > MAX_UPLOAD:
            raise UserError(f"This file is too large; upload one of at most {MAX_UPLOAD // 2**20} MiB.")
        data = io.BytesIO(path.read_bytes())
    except FileNotFoundError:  # deleted to make room for later uploads
        raise UserError("The server deleted this image; upload it again.") from None
    try:
        with warnings.catch_warnings(action="ignore"), open_image(data) as file:
            width, height = file.size
            is_deep = file.mode.startswith(("I", "F"))
        max_pixels = MAX_DEEP_PIXELS if is_deep else MAX_PIXELS
        if width * height <= max_pixels:
            return decode(data)
    except Exception:  # a decoder may raise any error for a corrupt file
        raise UserError("This file cannot be read as an image; upload a JPEG, a PNG or a similar file.") from None
    raise UserError(f"This image has {width}×{height} pixels; upload one of at most {max_pixels // 10**6} million.")


def _reject_urls(component: Any) -> Any:
    """Wraps the component's method that takes a file, so that it rejects URLs instead of fetching them."""
    take = component.async_move_resource_to_block_cache

    async def take_file(location: Any) -> Any:
        if str(location).lower().startswith(("http:", "https:")):
            raise ValueError("URLs are not accepted; upload a file")
        return await take(location)

    return take_file


def _save_examples(examples: Dataset, folder: Path) -> list[str]:
    """Saves some images of each class as PNGs and returns their paths."""
    num_classes = len(examples.class_names)
    per_class = max(1, MAX_EXAMPLES // num_classes)
    indices: list[int] = []
    for label in range(num_classes):
        indices += np.flatnonzero(examples.labels == label)[:per_class].tolist()
    paths = []
    for number, index in enumerate(indices[:MAX_EXAMPLES]):
        path = folder / f"{number}.png"
        Image.fromarray(examples.images[index]).save(path)
        paths.append(str(path))
    return paths


@cache
def _upload_folder() -> Path:
    """Returns this process's folder for Gradio's files, which is deleted at exit."""
    folder = tempfile.TemporaryDirectory(prefix="flaxresnet-demo-")
    atexit.register(folder.cleanup)
    return Path(folder.name).resolve()


def _gradio() -> Any:
    """Imports and returns gradio.

    Raises:
      UserError: gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it on import
    os.environ["GRADIO_TEMP_DIR"] = str(_upload_folder())  # gradio reads it at each use
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the demo needs {error.name}; install it with: pip install 'flaxresnet[demo]'") from None
    return gradio
