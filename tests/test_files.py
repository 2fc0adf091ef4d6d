"""Files appear whole or not at all; other people's directories are never touched."""

import os
import threading

import pytest

from pquant_fx.errors import OutputError
from pquant_fx.files import MARKER, owned_directory, write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "deep" / "a.bin"
    write_atomically(target, b"one")
    write_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(target.parent) == ["a.bin"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    target = tmp_path / "a.bin"
    write_atomically(target, b"old")
    with pytest.raises(TypeError):
        write_atomically(target, "no bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        write_atomically(tmp_path / "file" / "a.bin", b"")
    assert caught.value.code == "PQ505"
    assert "a.bin" in str(caught.value)
    with pytest.raises(OutputError) as caught, owned_directory(tmp_path / "file" / "sub"):
        pass
    assert caught.value.code == "PQ505"


def test_a_directory_appears_when_the_block_succeeds(tmp_path):
    target = tmp_path / "out"
    with owned_directory(target) as made:
        (made / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert (target / MARKER).exists()
    assert os.listdir(tmp_path) == ["out"]


def test_a_failing_block_leaves_nothing_and_keeps_the_old_result(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), owned_directory(target) as made:
        (made / "x").write_text("1")
        1 / 0
    assert os.listdir(tmp_path) == []
    with owned_directory(target) as made:
        (made / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), owned_directory(target, overwrite=True) as made:
        (made / "x").write_text("new")
        1 / 0
    assert (target / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_our_own_directory_is_replaced_only_when_asked(tmp_path):
    target = tmp_path / "out"
    with owned_directory(target) as made:
        (made / "old").write_text("")
    with pytest.raises(OutputError) as caught, owned_directory(target):
        pass
    assert caught.value.code == "PQ506"
    assert "overwrite=True" in caught.value.remedy
    with owned_directory(target, overwrite=True) as made:
        (made / "new").write_text("")
    assert sorted(os.listdir(target)) == sorted(["new", MARKER])


@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_files_are_refused(tmp_path, overwrite):
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter1.tex").write_text("years of work")
    with pytest.raises(OutputError) as caught, owned_directory(target, overwrite=overwrite):
        pass
    assert caught.value.code == "PQ506"
    assert (target / "chapter1.tex").read_text() == "years of work"
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(OutputError), owned_directory(tmp_path / "plain", overwrite=overwrite):
        pass


def test_an_empty_directory_may_be_used(tmp_path):
    (tmp_path / "out").mkdir()
    with owned_directory(tmp_path / "out") as made:
        (made / "x").write_text("")
    assert (tmp_path / "out" / "x").exists()


def test_a_reader_never_sees_a_partial_file(tmp_path):
    target, seen, stop = tmp_path / "a.bin", set(), threading.Event()
    write_atomically(target, b"a" * 100_000)

    def read():
        while not stop.is_set():
            seen.add(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for letter in (b"b", b"a") * 20:
        write_atomically(target, letter * 100_000)
    stop.set()
    reader.join()
    assert seen <= {b"a" * 100_000, b"b" * 100_000}
