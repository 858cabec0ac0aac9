"""Files appear whole or not at all, and wildcards name the files that they should."""

import errno
import gzip
import hashlib
import os

import pytest

from bert_tf.files import (
    check_output,
    expand,
    move,
    read_json,
    replacing,
    sha256,
    write_json,
    write_text,
    write_whole,
)


def test_nothing_is_left_of_a_file_that_failed(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "before\n")
    with pytest.raises(RuntimeError, match="half"), write_whole(path, "w") as stream:
        stream.write("aft")
        raise RuntimeError("half way")
    with pytest.raises(KeyboardInterrupt), replacing(path, ".npz") as temporary:
        assert temporary.endswith(".npz") and os.path.dirname(temporary) == str(tmp_path)
        with open(temporary, "w") as stream:
            stream.write("x")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["x.txt"]
    assert path.read_text() == "before\n"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "before")
    with write_whole(path) as stream:
        stream.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"


def test_folders_are_made_and_none_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("here.txt", "x")
    write_text("new/er/there.txt", "y")
    assert (tmp_path / "here.txt").read_text() == "x"
    assert (tmp_path / "new" / "er" / "there.txt").read_text() == "y"


def test_an_unknown_file_system_is_refused_before_there_is_anything_to_write():
    reason = "^nosuch://b/x: no such file system"
    with pytest.raises(ValueError, match=reason), write_whole("nosuch://b/x"):
        pytest.fail("work would be lost")


@pytest.mark.parametrize("name", ["deep", "new/"])
def test_a_folder_is_no_output_file(tmp_path, name):
    (tmp_path / "deep").mkdir()
    with pytest.raises(ValueError, match=f"^output_file: {tmp_path}/{name} is a folder, expected"):
        check_output(f"{tmp_path}/{name}", "output_file")
    assert os.listdir(tmp_path) == ["deep"]
    with pytest.raises(IsADirectoryError, match="deep"), write_whole(tmp_path / "deep") as stream:
        stream.write(b"x")
    assert os.listdir(tmp_path) == ["deep"]


def test_a_file_moves_to_another_file_system(tmp_path, monkeypatch):
    source, path = tmp_path / "a.txt", tmp_path / "b.txt"
    source.write_text("moved")
    rename, error = os.replace, errno.EACCES

    def replace(one, other):
        if one == source:
            raise OSError(error, os.strerror(error))
        rename(one, other)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):
        move(source, path)
    assert source.read_text() == "moved" and not path.exists()
    error = errno.EXDEV
    move(source, path)
    assert os.listdir(tmp_path) == ["b.txt"] and path.read_text() == "moved"


def test_compressed_bytes_depend_on_the_content_alone(tmp_path):
    for name in ("a.gz", "b.gz"):
        with write_whole(tmp_path / name) as stream:
            stream.write(b"word " * 101)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.gz", "b.gz"))
    assert first == second
    assert gzip.decompress(first) == b"word " * 101


def test_text_keeps_its_line_ends(tmp_path):
    write_text(tmp_path / "x", "a\r\nb\nä")
    assert (tmp_path / "x").read_bytes() == "a\r\nb\nä".encode()


def test_json_and_digest(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": [2]})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'
    assert read_json(tmp_path / "x.json") == {"a": [2], "b": 1}
    assert (
        sha256(tmp_path / "x.json")
        == hashlib.sha256((tmp_path / "x.json").read_bytes()).hexdigest()
    )


def test_wildcards(tmp_path):
    for name in ("b.txt", "a.txt", "[x].txt", "deep/er/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = expand(f"{tmp_path}/b.txt, {tmp_path}/?.txt,{tmp_path}/[x].txt", "input_file")
    assert [os.path.basename(path) for path in found] == ["b.txt", "a.txt", "b.txt", "[x].txt"]
    assert expand([f"{tmp_path}/**/c.txt"], "input_file") == [f"{tmp_path}/deep/er/c.txt"]


@pytest.mark.parametrize(
    ("pattern", "reason"), [("no*", "matches no file"), ("deep", "is a folder"), ("no", "matches")]
)
def test_patterns_that_name_nothing(tmp_path, pattern, reason):
    (tmp_path / "deep").mkdir()
    with pytest.raises(FileNotFoundError, match=f"^input_file: '{tmp_path}/.*' {reason}"):
        expand(f"{tmp_path}/{pattern}".replace("*", "[*]"), "input_file")
    with pytest.raises(FileNotFoundError, match="input_file: no files are named by ' , '"):
        expand(" , ", "input_file")
