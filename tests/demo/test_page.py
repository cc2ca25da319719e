"""The demo's page in a real browser, its limits on uploads, and the redaction of local paths."""

import asyncio
import io
import json
import os
import re
import socket
import struct
import sys
import tempfile
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from browser import chromium, listen
from conftest import blobs, small_in_a_corner
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import demo as command
from flaxresnet.demo import page as demo_page
from flaxresnet.demo.middleware import PathRedactionMiddleware, UploadLimitMiddleware


@pytest.fixture(scope="module")
def gradio():
    """Imports gradio, which takes seconds."""
    return pytest.importorskip("gradio", reason="install gradio (the `demo` extra) to try the demo")


@pytest.fixture(scope="module")
def address(gradio, finished_run):
    classifier = fr.Classifier.load(finished_run)
    blocks = demo_page.make_page(classifier, "Colours", command.examples_of(str(finished_run)))
    yield demo_page.serve(blocks, "127.0.0.1", 0)
    blocks.close()


@pytest.fixture(scope="module")
def unserved_page(gradio, finished_run):
    """Returns a page without a server."""
    return demo_page.make_page(fr.Classifier.load(finished_run), "Colours", None)


def jpeg(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(blobs(3, seed=8).images[index]).resize((300, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parity
def test_page_classifies_dropped_files(address, finished_run):
    with chromium() as browser:
        page = browser.new_page()
        errors = listen(page)
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
        page.wait_for_function("document.querySelector('#note').innerText.includes('Drop an image')")
        page.locator("input[type=file]").first.set_input_files(
            {"name": "junk.jpg", "mimeType": "image/jpeg", "buffer": b"no picture at all"}
        )
        page.wait_for_function("document.querySelector('#note').innerText.includes('cannot be read as an image')")
        assert "/tmp" not in page.locator("body").inner_text()
        # The browser reports that it cannot show the junk. There are no other errors and no requests to other machines.
        assert [text for text in errors if "127.0.0.1" not in text and "Failed to load resource" not in text] == []


@pytest.mark.parity
def test_page_flags_ood_pictures(gradio, calibrated_run, tmp_path):
    page = demo_page.make_page(fr.Classifier.load(calibrated_run), "Colours", None)
    classify = next(function.fn for function in page.fns.values() if function.name == "classify")
    for name, photo in (("far", small_in_a_corner(2)), ("near", blobs(3, seed=8).images[2])):
        Image.fromarray(photo).save(tmp_path / f"{name}.png")
    probabilities, heatmap, note = classify(str(tmp_path / "near.png"))
    assert max(probabilities, key=probabilities.get) == "blue"
    assert note == ""
    assert heatmap.shape[0] == heatmap.shape[1]
    assert classify(str(tmp_path / "far.png"))[2] == demo_page.OOD_NOTE


@pytest.mark.parity
def test_page_classifies_clicked_example(address):
    with chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        page.locator("button.gallery-item, .gallery button, .thumbnail-item").first.click()
        page.wait_for_selector("#heat img")
        assert "red" in page.locator("#classes h2").inner_text()


def fetch(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read(5_000_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(5_000_000).decode(errors="replace")


def upload(address: str, data: bytes) -> tuple[int, str]:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + data + b"\r\n--x--\r\n"
    return fetch(f"{address}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})


@pytest.mark.parity
def test_server_rejects_large_uploads(address):
    assert upload(address, b"x" * 1000)[0] == 200
    status, _ = upload(address, bytes(demo_page.MAX_UPLOAD + 1000))
    assert status == 413


@pytest.mark.parity
@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", __file__])
def test_server_hides_local_files(address, path):
    status, text = fetch(f"{address}gradio_api/file={path}")
    assert status in (403, 404)
    assert "root:" not in text


def classify_file(address: str, file: dict[str, Any], session: str) -> tuple[bool, str]:
    """Returns whether the page classifies the file of a request, and the full response."""
    config = json.loads(fetch(f"{address}config")[1])
    (photo,) = (c["id"] for c in config["components"] if c["props"].get("label") == "Image")
    (number,) = (d["id"] for d in config["dependencies"] if [photo, "change"] in d["targets"])
    event = {"data": [{"meta": {"_type": "gradio.FileData"}, **file}], "fn_index": number, "session_hash": session}
    as_json = {"Content-Type": "application/json"}
    status, response = fetch(f"{address}gradio_api/queue/join", json.dumps(event).encode(), as_json)
    if status != 200:
        return False, response
    response = fetch(f"{address}gradio_api/queue/data?session_hash={session}")[1]
    lines = [json.loads(line.removeprefix("data:")) for line in response.splitlines() if line.startswith("data:")]
    return any(line.get("msg") == "process_completed" and line["success"] for line in lines), response


@pytest.mark.parity
def test_server_classifies_only_uploads(address, finished_run):
    (uploaded_path,) = json.loads(upload(address, jpeg(1))[1])
    taken, response = classify_file(address, {"path": uploaded_path}, "uploaded")
    assert taken
    assert "green" in response
    secret = finished_run.parent / "secret.png"
    secret.write_bytes(jpeg(2))
    others = [{"path": str(secret)}, {"path": "/etc/hostname"}, {"path": "http://192.0.2.1/a.jpg"}]
    others.append({"path": "x", "url": "https://192.0.2.1/a.jpg"})
    others.append({"path": "/demo-files/../secret.png"})
    for number, file in enumerate(others):
        taken, response = classify_file(address, file, f"other{number}")
        assert not taken
        assert "blue" not in response
        assert str(finished_run) not in response


def local_paths_in(text: str) -> list[str]:
    """Returns the paths in a response below the temporary folder, the home folder or the current one."""
    known = {tempfile.gettempdir(), str(Path.home()), str(Path.cwd()), str(demo_page._upload_folder())}
    patterns = (re.escape(folder) + r"[^\"' ]*" for folder in known if len(folder) > 1)
    return re.findall("|".join(patterns), text)


@pytest.mark.parity
def test_responses_contain_no_local_path(address):
    (file,) = json.loads(upload(address, jpeg(1))[1])
    assert file.startswith("/demo-files/")
    taken, response = classify_file(address, {"path": file}, "paths")
    assert taken
    assert '"/demo-files/' in response
    refused = classify_file(address, {"path": str(demo_page._upload_folder() / "x.png")}, "refused")[1]
    pages = ["", "config", "gradio_api/info", "gradio_api/startup-events", "theme.css", "monitoring", "no/such/page"]
    pages += [f"gradio_api/file={path}" for path in (f"{file}/x", f"{file}/", "/demo-files/x.png", "/demo-files")]
    pages += ["gradio_api/call/x", "gradio_api/queue/data", "static/x%00", "assets/../../x"]
    answers = [fetch(f"{address}{page}") for page in pages]
    assert [status for status, _ in answers][:2] == [200, 200]
    for page, answer in zip(
        ["classified", "refused", *pages], [response, refused, *(a for _, a in answers)], strict=True
    ):
        assert local_paths_in(answer) == [], page
    with urllib.request.urlopen(f"{address}gradio_api/file={file}", timeout=20) as answer:  # the alias serves the file
        assert answer.read() == jpeg(1)
        assert local_paths_in(str(answer.headers)) == []


def send_through(
    middleware: Any, sent: bytes, answer: bytes, kind: bytes = b"application/json"
) -> tuple[bytes, bytes, bytes]:
    """Returns the request body that the application receives, the response body after the middleware and its length."""
    received = []
    messages = []

    async def application(scope, receive, send):
        received.append((await receive())["body"])
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for half in (answer[:9], answer[9:]):
            await send({"type": "http.response.body", "body": half, "more_body": half == answer[:9]})

    pieces = [{"type": "http.request", "body": sent[:9], "more_body": True}, {"type": "http.request", "body": sent[9:]}]

    async def receive():
        return pieces.pop(0)

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(middleware(application)(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in messages)
    return received[0], body, dict(messages[0]["headers"])[b"content-length"]


@pytest.mark.parametrize("folder", ["/tmp/x", "/tmp/ein Wörter/x"])
def test_redaction_replaces_every_spelling(folder):
    def middleware(application):
        return PathRedactionMiddleware(application, Path(folder))

    answer = f"{folder} {json.dumps(folder)} {quote(folder)}".encode()
    request, response, length = send_through(middleware, b'{"path": "/demo-files/a"}', answer)
    assert json.loads(request) == {"path": f"{folder}/a"}
    assert response == b'/demo-files "/demo-files" /demo-files'
    assert int(length) == len(response)
    assert send_through(middleware, b"", answer, b"image/png")[1] == answer  # not text


def test_read_upload_reports_deleted_file(tmp_path):
    with pytest.raises(fr.UserError, match="The server deleted this image; upload it again"):
        demo_page.read_upload(tmp_path / "gone.png")


def test_upload_limit_deletes_oldest(tmp_path):
    (tmp_path / "example.png").write_bytes(bytes(500))

    def remaining(limit):
        async def nothing(*_):
            pass

        headers = [(b"content-length", b"5")]
        asyncio.run(limit({"type": "http", "method": "POST", "headers": headers}, nothing, nothing))
        return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())

    async def application(*_):
        pass

    full = UploadLimitMiddleware(application, tmp_path, 100, max_bytes=250, max_files=10)
    many = UploadLimitMiddleware(application, tmp_path, 100, max_bytes=10_000, max_files=1)
    for age in range(4):
        path = tmp_path / str(age) / f"{age}.jpg"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    assert remaining(full) == ["0.jpg", "1.jpg", "example.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "example.png"]
    assert remaining(many) == ["0.jpg", "example.png"]


@pytest.mark.parity
def test_upload_limit_counts_all_files(address):
    part = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + bytes(15 * 2**20) + b"\r\n"
    )
    before = len(list(demo_page._upload_folder().rglob("*")))
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert fetch(f"{address}gradio_api/upload", part * 2 + b"--x--\r\n", kind)[0] == 413
    assert len(list(demo_page._upload_folder().rglob("*"))) == before


def test_reject_urls_raises():
    class Taker:
        async def async_move_resource_to_block_cache(self, place):
            return place

    take = demo_page._reject_urls(Taker())
    assert asyncio.run(take("/demo-files/a.jpg")) == "/demo-files/a.jpg"
    with pytest.raises(ValueError, match="URLs are not accepted; upload a file"):
        asyncio.run(take("HTTPS://192.0.2.1/a.jpg"))


def test_demo_title_is_folder_name(monkeypatch, calibrated_run):
    titles = []

    def make_page(classifier, title, examples):
        titles.append(title)
        return SimpleNamespace(block_thread=lambda: None)

    monkeypatch.setattr(demo_page, "make_page", make_page)
    monkeypatch.setattr(demo_page, "serve", lambda *_: "http://127.0.0.1:7860/")
    assert command.main(command.Arguments(str(calibrated_run))) == 0
    assert titles == [calibrated_run.name]


def save_picture(tmp_path: Path, kind: str, size: tuple[int, int]) -> Path:
    path = tmp_path / f"picture.{kind}"
    Image.new("L", size).save(path)
    return path


def declared(path: Path, mode: str, size: tuple[int, int]) -> Path:
    """Returns a PNG whose header declares `size`, but which contains one pixel; decoders fail on it."""
    buffer = io.BytesIO()
    Image.new(mode, (1, 1)).save(buffer, "PNG")
    data = buffer.getvalue()
    header = b"IHDR" + struct.pack(">II", *size) + data[24:29]  # after the 8-byte signature and the 4-byte length
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    return path


def test_read_upload_rejects_large_pictures(tmp_path, monkeypatch):
    with pytest.raises(fr.UserError, match="This image has 20000×3000 pixels; upload one of at most 50 million"):
        demo_page.read_upload(declared(tmp_path / "wide.png", "L", (20_000, 3_000)))
    with pytest.raises(fr.UserError, match="This file cannot be read as an image"):
        demo_page.read_upload(declared(tmp_path / "large.png", "L", (30_000, 30_000)))
    with pytest.raises(fr.UserError, match="This file cannot be read as an image"):  # Pillow decodes it on opening
        demo_page.read_upload(save_picture(tmp_path, "ico", (64, 64)))
    monkeypatch.setattr(demo_page, "MAX_UPLOAD", 10)
    with pytest.raises(fr.UserError, match="This file is too large"):
        demo_page.read_upload(save_picture(tmp_path, "jpg", (64, 64)))
    monkeypatch.setattr(demo_page, "MAX_UPLOAD", 10_000)
    for kind in ("jpg", "png", "webp", "gif", "bmp", "tiff"):
        assert demo_page.read_upload(save_picture(tmp_path, kind, (64, 48))).shape == (48, 64, 3)


def test_read_upload_rejects_deep_pictures(tmp_path):
    path = declared(tmp_path / "deep.png", "I;16", (7000, 7000))
    with pytest.raises(fr.UserError, match="This image has 7000×7000 pixels; upload one of at most 12 million"):
        demo_page.read_upload(path)


@pytest.mark.parity
@pytest.mark.parametrize("host", ["999.1.1.1", "no such host", "192.0.2.1", "::ffff:1:2:3:4", "a" * 100])
def test_serve_rejects_foreign_host(host, unserved_page):
    message = rf"--host '{host}' is not an address of this computer \(.*\); give one such as 127.0.0.1 or"
    with pytest.raises(fr.UserError, match=message):
        demo_page.serve(unserved_page, host, 0)


def test_default_host_is_local():
    assert command.Arguments("run").host == "127.0.0.1"


@pytest.mark.parity
def test_server_listens_locally(address):
    assert address.startswith("http://127.0.0.1:")


@pytest.mark.parity
def test_serve_rejects_used_port(unserved_page):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            fr.UserError,
            match=f"--port {port} cannot be used .another program listens on the port.; give another --port",
        ):
            demo_page.serve(unserved_page, "127.0.0.1", port)


def test_demo_rejects_invalid_port(finished_run):
    with pytest.raises(fr.UserError, match="--port must be between 0 and 65535, not 70000"):
        command.main(command.Arguments(str(finished_run), port=70_000))


def test_missing_gradio_names_extra(monkeypatch, finished_run):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(fr.UserError, match=r"the demo needs gradio; install it with: pip install 'flaxresnet\[demo\]'"):
        command.main(command.Arguments(str(finished_run)))


@pytest.mark.parity
def test_server_answers_parallel_requests(address):
    pictures = [json.loads(upload(address, jpeg(index % 3))[1])[0] for index in range(3)]

    def ask(number: int) -> tuple[bool, str]:
        return classify_file(address, {"path": pictures[number % 3]}, f"parallel{number}")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    for number, (taken, response) in enumerate(answers):
        assert taken, response
        assert ("red", "green", "blue")[number % 3] in response


@pytest.mark.parity
@pytest.mark.parametrize(
    "junk",
    [b"", b"\x00" * 100, b"GIF89a", b"%PDF-1.4", b"<svg onload='x'/>", b"\xff\xd8\xff\xe0" + b"?" * 500],
    ids=["empty", "zeros", "gif", "pdf", "svg", "jpeg"],
)
def test_server_reports_junk_without_paths(address, junk, finished_run):
    status, text = upload(address, junk)
    assert status == 200
    (path,) = json.loads(text)
    _, response = classify_file(address, {"path": path}, f"junk{len(junk)}{junk[:3].hex()}")
    assert "cannot be read as an image" in response
    for folder in (str(finished_run.parent), str(Path(demo_page.__file__).parent), str(Path.home())):
        assert folder not in response


@pytest.mark.parity
def test_slow_clients_block_nobody(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for client in slow:  # each sends half of a request
        client.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nx")
    taken, _ = classify_file(address, {"path": json.loads(upload(address, jpeg(1))[1])[0]}, "quick")
    assert taken
    for client in slow:
        client.close()
