"""The demo's page in a real browser, and what it does not let in or out."""

import io
import json
import socket
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from browser import chromium, listen
from conftest import blobs
from PIL import Image

import flaxresnet as fr
from flaxresnet import demo
from flaxresnet.commands import demo as command

gradio = pytest.importorskip("gradio", reason="install gradio (the `demo` extra) to try the demo")


@pytest.fixture(scope="module")
def address(finished_run):
    classifier = fr.Classifier.load(finished_run)
    blocks = demo.make_page(classifier, "Colours", command.examples_of(str(finished_run)))
    yield demo.serve(blocks, "127.0.0.1", 0, wait=False)
    blocks.close()


def jpeg(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(blobs(3, seed=8).images[index]).resize((300, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_dropped_jpeg_is_answered_and_junk_gets_a_sentence(address, finished_run):
    with chromium() as browser:
        page = browser.new_page()
        said = listen(page)
        page.goto(address)
        drop = page.locator("input[type=file]").first
        drop.set_input_files({"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": jpeg(1)})
        page.wait_for_selector("#heat img")
        expected = fr.Classifier.load(finished_run).predict(np.asarray(Image.open(io.BytesIO(jpeg(1)))))
        assert expected.label == "green"
        assert page.locator("#classes").inner_text().split("\n")[-1] != ""
        assert "green" in page.locator("#classes h2").inner_text()
        assert f"{expected.probability:.0%}" in page.locator("#classes").inner_text()

        page.get_by_label("Remove Image").first.click()
        page.wait_for_function("document.querySelector('#note').innerText.includes('Drop a picture')")
        page.locator("input[type=file]").first.set_input_files(
            {"name": "junk.jpg", "mimeType": "image/jpeg", "buffer": b"no picture at all"}
        )
        page.wait_for_function("document.querySelector('#note').innerText.includes('cannot be read as a picture')")
        assert "/tmp" not in page.locator("body").inner_text()
        # The browser itself says that it cannot show the junk; nothing else goes wrong, and nobody else is asked.
        assert [text for text in said if "127.0.0.1" not in text and "Failed to load resource" not in text] == []


def test_an_example_can_be_clicked(address):
    with chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        page.locator("button.gallery-item, .gallery button, .thumbnail-item").first.click()
        page.wait_for_selector("#heat img")
        assert "red" in page.locator("#classes h2").inner_text()


def asked(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read(100_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(100_000).decode(errors="replace")


def uploaded(address: str, data: bytes) -> tuple[int, str]:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + data + b"\r\n--x--\r\n"
    return asked(f"{address}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})


def test_large_uploads_are_refused(address):
    assert uploaded(address, b"x" * 1000)[0] == 200
    status, _ = uploaded(address, bytes(demo.LARGEST_UPLOAD + 1000))
    assert status == 413


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", __file__])
def test_files_of_this_machine_are_not_served(address, path):
    status, text = asked(f"{address}gradio_api/file={path}")
    assert status in (403, 404)
    assert "root:" not in text


def test_a_file_that_was_not_uploaded_is_not_classified(address):
    event = {"data": [{"path": __file__, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "s"}
    status, text = asked(
        f"{address}gradio_api/run/predict", json.dumps(event).encode(), {"Content-Type": "application/json"}
    )
    assert status >= 400
    assert __file__ not in text


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded():
    buffer = io.BytesIO()
    Image.new("1", (20_000, 3_000)).save(buffer, "PNG")
    with pytest.raises(fr.UserError, match="This picture has 20000×3000 pixels; give one of up to 50 million"):
        demo.read_upload(buffer.getvalue())
    Image.new("1", (30_000, 30_000)).save(buffer := io.BytesIO(), "PNG")
    with pytest.raises(fr.UserError, match="This file cannot be read as a picture"):
        demo.read_upload(buffer.getvalue())
    assert demo.read_upload(jpeg(0)).shape == (200, 300, 3)


def test_only_this_computer_is_listened_to_unless_told_otherwise(address):
    assert command.Arguments("run").host == "127.0.0.1"
    assert address.startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_a_sentence(finished_run):
    blocks = demo.make_page(fr.Classifier.load(finished_run), "Colours", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(fr.UserError, match=f"--host 127.0.0.1 --port {port} cannot be used .* give another --port"):
            demo.serve(blocks, "127.0.0.1", port, wait=False)
    with pytest.raises(fr.UserError, match="--port must be between 0 and 65535, not 70000"):
        command.main(command.Arguments(str(finished_run), port=70_000))


def test_without_gradio_the_sentence_says_what_to_install(monkeypatch, finished_run):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(fr.UserError, match=r"the demo needs gradio; install it with: pip install 'flaxresnet\[demo\]'"):
        command.main(command.Arguments(str(finished_run)))
