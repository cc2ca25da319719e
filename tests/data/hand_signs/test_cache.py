"""The cache of rendered hand signs: equal to rendered ones, also if the file is damaged or cannot be written."""

import numpy as np
import pytest

from flaxresnet.data.hand_signs import cache, render

ARGUMENTS = (12, (0, 1), 32, 0.1)


@pytest.fixture
def render_calls(monkeypatch, tmp_path):
    """The arguments of each call of `render_signs`, with an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    render_signs = render.render_signs

    def record(*arguments):
        calls.append(arguments)
        return render_signs(*arguments)

    monkeypatch.setattr(render, "render_signs", record)
    return calls


def cached_files(tmp_path):
    return sorted((tmp_path / "flaxresnet" / "drawn").iterdir())


def test_signs_are_rendered_once(render_calls, tmp_path):
    rendered = cache._load_or_draw(*ARGUMENTS)
    cached = cache._load_or_draw(*ARGUMENTS)
    assert render_calls == [ARGUMENTS]
    for array, expected in zip(cached, rendered, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
        assert array.flags.writeable
    assert len(cached_files(tmp_path)) == 1


def test_default_signs_are_cached(render_calls, monkeypatch):
    hand_signs = render.hand_signs
    monkeypatch.setattr(render, "hand_signs", lambda **options: hand_signs(train=12, test=6, image_size=32, **options))
    rendered = cache.load_default_signs()
    cached = cache.load_default_signs()
    assert len(render_calls) == 2
    assert cached.train.fingerprint() == rendered.train.fingerprint()
    assert cached.test.fingerprint() == rendered.test.fingerprint()
    assert cached.source == rendered.source


@pytest.mark.parametrize(
    "other", [(13, (0, 1), 32, 0.1), (12, (0, 0), 32, 0.1), (12, (0, 1), 33, 0.1), (12, 0, 32, 1.0)]
)
def test_other_arguments_are_rendered(render_calls, other):
    cache._load_or_draw(*ARGUMENTS)
    cache._load_or_draw(*other)
    assert render_calls == [ARGUMENTS, other]


@pytest.mark.parametrize("change", ["source", "NumPy"])
def test_other_version_is_rendered(render_calls, monkeypatch, tmp_path, change):
    cache._load_or_draw(*ARGUMENTS)
    if change == "NumPy":
        monkeypatch.setattr(np, "__version__", "99.0")
    else:
        (tmp_path / "hand_model.py").write_text("another hand")
        monkeypatch.setattr(cache.hand_model, "__file__", str(tmp_path / "hand_model.py"))
    cache._load_or_draw(*ARGUMENTS)
    assert len(render_calls) == 2


def test_unreadable_source_disables_cache(render_calls, monkeypatch, tmp_path):
    monkeypatch.setattr(cache.hand_model, "__file__", str(tmp_path / "archive.zip" / "hand_model.py"))
    cache._load_or_draw(*ARGUMENTS)
    cache._load_or_draw(*ARGUMENTS)
    assert len(render_calls) == 2
    assert not (tmp_path / "flaxresnet").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content: b"\x80\x04." + content,
    ],
    ids=["empty", "truncated", "flipped bit", "pickle"],
)
def test_damaged_file_is_replaced(render_calls, tmp_path, damage):
    rendered = cache._load_or_draw(*ARGUMENTS)
    (file,) = cached_files(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        np.testing.assert_array_equal(cache._load_or_draw(*ARGUMENTS)[0], rendered[0])
    assert len(render_calls) == 2


def test_unwritable_cache_is_ignored(render_calls, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert len(cache._load_or_draw(*ARGUMENTS)[0]) == 12
    assert len(render_calls) == 2


def test_oldest_files_are_deleted(render_calls, tmp_path):
    last = cache.MAX_FILES + 2
    for count in range(1, last + 1):
        cache._load_or_draw(count, 0, 32, 0.1)
    assert len(cached_files(tmp_path)) == cache.MAX_FILES
    cache._load_or_draw(last, 0, 32, 0.1)
    assert len(render_calls) == last
