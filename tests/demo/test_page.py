"""The demo's page in a real browser, and what it does not let in or out."""

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
    """Gradio, which takes seconds to import."""
    return pytest.importorskip("gradio", reason="install gradio (the `demo` extra) to try the demo")


@pytest.fixture(scope="module")
def address(gradio, finished_run):
    classifier = fr.Classifier.load(finished_run)
    blocks = demo_page.make_page(classifier, "Colours", command.examples_of(str(finished_run)))
    yield demo_page.serve(blocks, "127.0.0.1", 0, wait=False)
    blocks.close()


@pytest.fixture(scope="module")
def unserved(gradio, finished_run):
    """A page that nobody can look at yet."""
    return demo_page.make_page(fr.Classifier.load(finished_run), "Colours", None)


def jpeg(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(blobs(3, seed=8).images[index]).resize((300, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parity
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


@pytest.mark.parity
def test_a_strange_picture_is_called_so(gradio, calibrated_run, tmp_path):
    page = demo_page.make_page(fr.Classifier.load(calibrated_run), "Colours", None)
    answer = next(one.fn for one in page.fns.values() if one.name == "answer")
    for name, photo in (("far", small_in_a_corner(2)), ("near", blobs(3, seed=8).images[2])):
        Image.fromarray(photo).save(tmp_path / f"{name}.png")
    shares, shown, note = answer(str(tmp_path / "near.png"))
    assert (max(shares, key=shares.get), note) == ("blue", "")
    assert shown.shape[0] == shown.shape[1]
    assert answer(str(tmp_path / "far.png"))[2] == demo_page.UNLIKE


@pytest.mark.parity
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
            return answer.status, answer.read(5_000_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(5_000_000).decode(errors="replace")


def uploaded(address: str, data: bytes) -> tuple[int, str]:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + data + b"\r\n--x--\r\n"
    return asked(f"{address}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})


@pytest.mark.parity
def test_large_uploads_are_refused(address):
    assert uploaded(address, b"x" * 1000)[0] == 200
    status, _ = uploaded(address, bytes(demo_page.MAX_UPLOAD + 1000))
    assert status == 413


@pytest.mark.parity
@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", __file__])
def test_files_of_this_machine_are_not_served(address, path):
    status, text = asked(f"{address}gradio_api/file={path}")
    assert status in (403, 404)
    assert "root:" not in text


def classified(address: str, file: dict[str, Any], session: str) -> tuple[bool, str]:
    """Whether the page's own function took a file as a request names it, and all that was answered."""
    config = json.loads(asked(f"{address}config")[1])
    (photo,) = (c["id"] for c in config["components"] if c["props"].get("label") == "Picture")
    (number,) = (d["id"] for d in config["dependencies"] if [photo, "change"] in d["targets"])
    event = {"data": [{"meta": {"_type": "gradio.FileData"}, **file}], "fn_index": number, "session_hash": session}
    as_json = {"Content-Type": "application/json"}
    status, said = asked(f"{address}gradio_api/queue/join", json.dumps(event).encode(), as_json)
    if status != 200:
        return False, said
    said = asked(f"{address}gradio_api/queue/data?session_hash={session}")[1]
    lines = [json.loads(line.removeprefix("data:")) for line in said.splitlines() if line.startswith("data:")]
    return any(line.get("msg") == "process_completed" and line["success"] for line in lines), said


@pytest.mark.parity
def test_only_a_file_that_was_uploaded_is_classified(address, finished_run):
    (uploaded_path,) = json.loads(uploaded(address, jpeg(1))[1])
    taken, said = classified(address, {"path": uploaded_path}, "uploaded")
    assert taken
    assert "green" in said
    secret = finished_run.parent / "secret.png"
    secret.write_bytes(jpeg(2))
    others = [{"path": str(secret)}, {"path": "/etc/hostname"}, {"path": "http://192.0.2.1/a.jpg"}]
    others.append({"path": "x", "url": "https://192.0.2.1/a.jpg"})
    others.append({"path": "/demo-files/../secret.png"})
    for number, file in enumerate(others):
        taken, said = classified(address, file, f"other{number}")
        assert not taken
        assert "blue" not in said
        assert str(finished_run) not in said


def places_in(text: str) -> list[str]:
    """Paths of this machine in what was answered: under the folder for temporary files, the home, the current one."""
    known = {tempfile.gettempdir(), str(Path.home()), str(Path.cwd()), str(demo_page._folder())}
    places = (re.escape(place) + r"[^\"' ]*" for place in known if len(place) > 1)
    return re.findall("|".join(places), text)


@pytest.mark.parity
def test_no_place_on_this_machine_is_in_any_answer(address):
    (file,) = json.loads(uploaded(address, jpeg(1))[1])
    assert file.startswith("/demo-files/")
    taken, said = classified(address, {"path": file}, "places")
    assert taken
    assert '"/demo-files/' in said
    refused = classified(address, {"path": str(demo_page._folder() / "x.png")}, "refused")[1]
    pages = ["", "config", "gradio_api/info", "gradio_api/startup-events", "theme.css", "monitoring", "no/such/page"]
    pages += [f"gradio_api/file={path}" for path in (f"{file}/x", f"{file}/", "/demo-files/x.png", "/demo-files")]
    pages += ["gradio_api/call/x", "gradio_api/queue/data", "static/x%00", "assets/../../x"]
    answers = [asked(f"{address}{page}") for page in pages]
    assert [status for status, _ in answers][:2] == [200, 200]
    for page, answer in zip(["classified", "refused", *pages], [said, refused, *(a for _, a in answers)], strict=True):
        assert places_in(answer) == [], page
    with urllib.request.urlopen(f"{address}gradio_api/file={file}", timeout=20) as answer:  # but the file is there
        assert answer.read() == jpeg(1)
        assert places_in(str(answer.headers)) == []


def through(door: Any, sent: bytes, answer: bytes, kind: bytes = b"application/json") -> tuple[bytes, bytes, bytes]:
    """What an application behind a door gets, and what it answers as it comes out, with its length."""
    got, said = [], []

    async def application(scope, receive, send):
        got.append((await receive())["body"])
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for half in (answer[:9], answer[9:]):
            await send({"type": "http.response.body", "body": half, "more_body": half == answer[:9]})

    pieces = [{"type": "http.request", "body": sent[:9], "more_body": True}, {"type": "http.request", "body": sent[9:]}]

    async def receive():
        return pieces.pop(0)

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(door(application)(scope, receive, send))
    return got[0], b"".join(message.get("body", b"") for message in said), dict(said[0]["headers"])[b"content-length"]


@pytest.mark.parametrize("place", ["/tmp/x", "/tmp/ein Wörter/x"])
def test_a_folder_is_called_otherwise_in_texts_however_it_is_written(place):
    def door(application):
        return PathRedactionMiddleware(application, Path(place))

    answer = f"{place} {json.dumps(place)} {quote(place)}".encode()
    got, said, length = through(door, b'{"path": "/demo-files/a"}', answer)
    assert json.loads(got) == {"path": f"{place}/a"}
    assert (said, int(length)) == (b'/demo-files "/demo-files" /demo-files', len(said))
    assert through(door, b"", answer, b"image/png")[1] == answer  # no text


def test_an_upload_that_is_gone_before_its_turn_is_a_sentence(tmp_path):
    with pytest.raises(fr.UserError, match="This picture is not here any more; upload it again"):
        demo_page.read_upload(tmp_path / "gone.png")


def test_the_oldest_uploads_go_where_there_are_too_many(tmp_path):
    (tmp_path / "example.png").write_bytes(bytes(500))

    def after(door):
        async def nothing(*_):
            pass

        headers = [(b"content-length", b"5")]
        asyncio.run(door({"type": "http", "method": "POST", "headers": headers}, nothing, nothing))
        return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())

    async def application(*_):
        pass

    full = UploadLimitMiddleware(application, tmp_path, 100, most=250, most_files=10)
    many = UploadLimitMiddleware(application, tmp_path, 100, most=10_000, most_files=1)
    for age in range(4):
        (path := tmp_path / str(age) / f"{age}.jpg").parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    assert after(full) == ["0.jpg", "1.jpg", "example.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "example.png"]
    assert after(many) == ["0.jpg", "example.png"]


@pytest.mark.parity
def test_a_request_of_many_files_is_refused_before_they_are_kept(address):
    part = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + bytes(15 * 2**20) + b"\r\n"
    )
    before = len(list(demo_page._folder().rglob("*")))
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert asked(f"{address}gradio_api/upload", part * 2 + b"--x--\r\n", kind)[0] == 413
    assert len(list(demo_page._folder().rglob("*"))) == before


def test_no_address_in_a_request_is_fetched():
    class Taker:
        async def async_move_resource_to_block_cache(self, place):
            return place

    take = demo_page._reject_urls(Taker())
    assert asyncio.run(take("/demo-files/a.jpg")) == "/demo-files/a.jpg"
    with pytest.raises(ValueError, match="only files that were uploaded are taken"):
        asyncio.run(take("HTTPS://192.0.2.1/a.jpg"))


def test_the_page_has_the_runs_name_but_not_its_place(monkeypatch, calibrated_run):
    titles = []
    monkeypatch.setattr(demo_page, "make_page", lambda classifier, title, examples: titles.append(title))
    monkeypatch.setattr(demo_page, "serve", lambda *_: "")
    assert command.main(command.Arguments(str(calibrated_run))) == 0
    assert titles == [calibrated_run.name]


def picture(tmp_path: Path, kind: str, size: tuple[int, int]) -> Path:
    Image.new("L", size).save(path := tmp_path / f"picture.{kind}")
    return path


def declared(path: Path, mode: str, size: tuple[int, int]) -> Path:
    """A PNG that says it has so many pixels, and has one: whoever decodes it finds it broken."""
    buffer = io.BytesIO()
    Image.new(mode, (1, 1)).save(buffer, "PNG")
    data = buffer.getvalue()
    header = b"IHDR" + struct.pack(">II", *size) + data[24:29]  # after 8 bytes of the format, and 4 of its length
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    return path


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    with pytest.raises(fr.UserError, match="This picture has 20000×3000 pixels; give one of up to 50 million"):
        demo_page.read_upload(declared(tmp_path / "wide.png", "L", (20_000, 3_000)))
    with pytest.raises(fr.UserError, match="This file cannot be read as a picture"):
        demo_page.read_upload(declared(tmp_path / "large.png", "L", (30_000, 30_000)))
    with pytest.raises(fr.UserError, match="This file cannot be read as a picture"):  # Pillow decodes it to open it
        demo_page.read_upload(picture(tmp_path, "ico", (64, 64)))
    monkeypatch.setattr(demo_page, "MAX_UPLOAD", 10)
    with pytest.raises(fr.UserError, match="This file is too large"):
        demo_page.read_upload(picture(tmp_path, "jpg", (64, 64)))
    monkeypatch.setattr(demo_page, "MAX_UPLOAD", 10_000)
    for kind in ("jpg", "png", "webp", "gif", "bmp", "tiff"):
        assert demo_page.read_upload(picture(tmp_path, kind, (64, 48))).shape == (48, 64, 3)


def test_a_deep_picture_is_refused_where_it_would_fill_the_memory(tmp_path):
    path = declared(tmp_path / "deep.png", "I;16", (7000, 7000))
    with pytest.raises(fr.UserError, match="This picture has 7000×7000 pixels; give one of up to 12 million"):
        demo_page.read_upload(path)


@pytest.mark.parity
@pytest.mark.parametrize("host", ["999.1.1.1", "no such host", "192.0.2.1", "::ffff:1:2:3:4", "a" * 100])
def test_a_host_that_this_computer_is_not_is_a_sentence(host, unserved):
    words = rf"--host '{host}' cannot be listened at \(.*\); give an address of this computer, such as 127.0.0.1 or"
    with pytest.raises(fr.UserError, match=words):
        demo_page.serve(unserved, host, 0, wait=False)


def test_usual_host_is_this_computer():
    assert command.Arguments("run").host == "127.0.0.1"


@pytest.mark.parity
def test_only_this_computer_is_listened_to_unless_told_otherwise(address):
    assert address.startswith("http://127.0.0.1:")


@pytest.mark.parity
def test_a_port_that_is_taken_is_a_sentence(unserved):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            fr.UserError, match=f"--port {port} cannot be used .something else listens there.; give another --port"
        ):
            demo_page.serve(unserved, "127.0.0.1", port, wait=False)


def test_ports_beyond_range_are_refused(finished_run):
    with pytest.raises(fr.UserError, match="--port must be between 0 and 65535, not 70000"):
        command.main(command.Arguments(str(finished_run), port=70_000))


def test_without_gradio_the_sentence_says_what_to_install(monkeypatch, finished_run):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(fr.UserError, match=r"the demo needs gradio; install it with: pip install 'flaxresnet\[demo\]'"):
        command.main(command.Arguments(str(finished_run)))


@pytest.mark.parity
def test_requests_at_once_are_answered(address):
    pictures = [json.loads(uploaded(address, jpeg(index % 3))[1])[0] for index in range(3)]

    def ask(number: int) -> tuple[bool, str]:
        return classified(address, {"path": pictures[number % 3]}, f"parallel{number}")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    for number, (taken, said) in enumerate(answers):
        assert taken, said
        assert ("red", "green", "blue")[number % 3] in said


@pytest.mark.parity
@pytest.mark.parametrize(
    "junk",
    [b"", b"\x00" * 100, b"GIF89a", b"%PDF-1.4", b"<svg onload='x'/>", b"\xff\xd8\xff\xe0" + b"?" * 500],
    ids=["nothing", "zeros", "gif", "pdf", "svg", "jpeg"],
)
def test_junk_is_answered_with_a_sentence_that_names_no_place(address, junk, finished_run):
    status, text = uploaded(address, junk)
    assert status == 200
    (path,) = json.loads(text)
    _, said = classified(address, {"path": path}, f"junk{len(junk)}{junk[:3].hex()}")
    assert "cannot be read as a picture" in said
    for place in (str(finished_run.parent), str(Path(demo_page.__file__).parent), str(Path.home())):
        assert place not in said


@pytest.mark.parity
def test_a_client_that_is_slow_holds_nobody_up(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for client in slow:  # half a request each, and silence
        client.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nx")
    taken, _ = classified(address, {"path": json.loads(uploaded(address, jpeg(1))[1])[0]}, "quick")
    assert taken
    for client in slow:
        client.close()
