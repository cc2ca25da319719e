"""Drawn hand signs that are kept: the same as drawn ones, whatever happened to the file."""

import numpy as np
import pytest

from flaxresnet.data.hand_signs import cache, render
from flaxresnet.data.hand_signs.cache import _kept_or_drawn as signs

WHAT = (12, (0, 1), 32, 0.1)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """How often pictures were drawn, with a cache folder of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(render, "render_signs", lambda *a, real=render.render_signs: (calls.append(a), real(*a))[1])
    return calls


def files(tmp_path):
    return sorted((tmp_path / "flaxresnet" / "drawn").iterdir())


def test_they_are_drawn_once(drawn, tmp_path):
    first, again = signs(*WHAT), signs(*WHAT)
    assert drawn == [WHAT]
    for kept, made in zip(again, first, strict=True):
        np.testing.assert_array_equal(kept, made)
        assert kept.dtype == made.dtype
        assert kept.flags.writeable
    assert len(files(tmp_path)) == 1


def test_those_of_no_data_are_kept(drawn, monkeypatch):
    small = {"train": 12, "test": 6, "image_size": 32}
    real = render.hand_signs
    monkeypatch.setattr(render, "hand_signs", lambda **options: real(**small, **options))
    first, again = cache.load_default_signs(), cache.load_default_signs()
    assert len(drawn) == 2
    assert [again.train.fingerprint(), again.test.fingerprint()] == [
        first.train.fingerprint(),
        first.test.fingerprint(),
    ]
    assert (again.source, again.train.class_names) == (first.source, first.train.class_names)


@pytest.mark.parametrize(
    "other", [(13, (0, 1), 32, 0.1), (12, (0, 0), 32, 0.1), (12, (0, 1), 33, 0.1), (12, 0, 32, 1.0)]
)
def test_others_are_drawn(drawn, other):
    signs(*WHAT)
    signs(*other)
    assert drawn == [WHAT, other]


@pytest.mark.parametrize("change", ["program", "NumPy"])
def test_another_version_draws_its_own(drawn, monkeypatch, tmp_path, change):
    signs(*WHAT)
    if change == "NumPy":
        monkeypatch.setattr(np, "__version__", "99.0")
    else:
        (tmp_path / "hand.py").write_text("another hand")
        monkeypatch.setattr(cache.hand_model, "__file__", str(tmp_path / "hand.py"))
    signs(*WHAT)
    assert len(drawn) == 2


def test_unreadable_source_keeps_nothing(drawn, monkeypatch, tmp_path):
    monkeypatch.setattr(cache.hand_model, "__file__", str(tmp_path / "archive.zip" / "hand_model.py"))
    signs(*WHAT)
    signs(*WHAT)
    assert drawn == [WHAT, WHAT]
    assert not (tmp_path / "flaxresnet").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content: b"\x80\x04." + content,
    ],
    ids=["empty", "cut", "one bit", "not an archive"],
)
def test_damaged_ones_are_drawn_again_and_kept(drawn, tmp_path, damage):
    first = signs(*WHAT)
    (file,) = files(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    np.testing.assert_array_equal(signs(*WHAT)[0], first[0])
    assert len(drawn) == 2
    signs(*WHAT)
    assert len(drawn) == 2


def test_without_a_cache_folder_they_are_drawn_each_time(drawn, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(signs(*WHAT)[0]) == 12
    assert len(signs(*WHAT)[0]) == 12
    assert len(drawn) == 2


def test_only_the_newest_are_kept(drawn, tmp_path):
    for count in range(6, 6 + cache.MAX_FILES + 2):
        signs(count, 0, 32, 0.1)
    assert len(files(tmp_path)) == cache.MAX_FILES
    signs(6 + cache.MAX_FILES + 1, 0, 32, 0.1)
    assert len(drawn) == cache.MAX_FILES + 2
