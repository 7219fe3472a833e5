"""The errors that people read."""

from __future__ import annotations

import pickle

import pytest

from ensemble_sae.errors import CorruptFile, UserError, WorkerFailed, nearest


def test_an_error_has_a_line_for_all_that_is_known() -> None:
    error = UserError("Wrong.", where="a: b", found="1", allowed="2", next_step="do")
    assert str(error).splitlines() == [
        "Wrong.",
        "  where:   a: b",
        "  found:   1",
        "  allowed: 2",
        "  next:    do",
    ]
    assert str(UserError("Wrong.")) == "Wrong."


@pytest.mark.parametrize(("cls", "code"), [(UserError, 2), (CorruptFile, 2), (WorkerFailed, 3)])
def test_errors_cross_to_another_process(cls: type[UserError], code: int) -> None:
    error = cls("Wrong.", where="w", found="f", allowed="a", next_step="n")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert (again.exit_code, again.found) == (code, "f")


def test_nearest_lists_and_hints() -> None:
    assert nearest("teid", ["untied", "tied"]) == "tied, untied  (did you mean 'tied'?)"
    assert nearest("xyz", ["b", "a"]) == "a, b"
    assert nearest("xyz", []) == "(nothing)"
