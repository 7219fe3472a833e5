"""The embedded corpus: what is in it, in which order, and what is held out."""

import pytest

from ensemble_sae.errors import UserError
from ensemble_sae.lm.corpus import documents, is_held_out, is_test


@pytest.fixture
def library(tmp_path):
    """A small folder laid out as a standard library."""
    files = {
        "json/decoder.py": b"import re\n",
        "abc.py": b"x = 1\n",
        "empty.py": b"",
        "latin.py": b"# \xe9\n",
        "notes.txt": b"no Python",
        "test/test_abc.py": b"assert True\n",
        "ctypes/test/test_x.py": b"assert 1\n",
        "idlelib/idle_test/test_y.py": b"assert 2\n",
        "encodings/cp1252.py": b"table = ''\n",
        "pydoc_data/topics.py": b"topics = {}\n",
        "site-packages/numpy.py": b"installed = True\n",
        "_sysconfigdata__linux.py": b"built = {}\n",
        "config-3.11/python-config.py": b"built = 1\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def test_only_the_library_itself_sorted_by_name(library):
    assert list(documents(root=library)) == [
        ("abc.py", "x = 1\n"),
        ("json/decoder.py", "import re\n"),
    ]


def test_with_tests(library):
    names = [name for name, _ in documents(tests=True, root=library)]
    assert names == [
        "abc.py",
        "ctypes/test/test_x.py",
        "idlelib/idle_test/test_y.py",
        "json/decoder.py",
        "test/test_abc.py",
    ]
    assert [is_test(name) for name in names] == [False, True, True, False, True]


def test_nothing_found(tmp_path):
    with pytest.raises(UserError, match="corpus is empty") as error:
        next(documents(root=tmp_path))
    assert str(tmp_path) in str(error.value)


def test_the_interpreters_own_library():
    once = list(documents())
    assert once == list(documents())
    names = [name for name, _ in once]
    assert names == sorted(names)
    assert len(names) == len(set(names))
    assert {"json/decoder.py", "typing.py", "asyncio/events.py"} <= set(names)
    assert sum(len(text) for _, text in once) > 5_000_000


def test_held_out_by_name_alone():
    # Fixed by a hash: these may never change, the shipped weights did not see the first two.
    assert is_held_out("sched.py")
    assert is_held_out("multiprocessing/connection.py")
    assert not is_held_out("json/decoder.py")
    share = sum(is_held_out(f"folder/{i}.py") for i in range(20_000)) / 20_000
    assert share == pytest.approx(0.03, abs=0.005)
    assert not any(is_held_out(f"test/{i}.py") for i in range(2_000))
