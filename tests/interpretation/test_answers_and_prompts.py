"""What is sent, what is read out of answers, and what is kept."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ensemble_sae.errors import UserError
from ensemble_sae.interpretation import prompts
from ensemble_sae.interpretation.alignment import align
from ensemble_sae.interpretation.answers import Answer, Answers, name_of
from ensemble_sae.interpretation.logprobs import expected_numbers
from ensemble_sae.interpretation.questions import rough_tokens
from ensemble_sae.lm.texts import reader, visible

TOKENS = [" the", " cat", " sat", " on", " the", " mat", ".", "\\n", " 7", ":"]
LINES = "\n".join(f"{token}\t{n}" for n, token in enumerate(TOKENS))
NUMBERS = [float(n) for n in range(10)]


def answer(text: str, finish: str = "stop", expected=()) -> Answer:
    return Answer(text, finish, 0, 0, tuple(expected))


def simulated(text: str, tokens=TOKENS, **more) -> list[float]:
    return prompts.read_simulation(answer(text, **more), tokens)


def test_activations_are_whole_numbers_relative_to_the_largest() -> None:
    values = torch.tensor([-1.0, 0.0, 0.19, 0.2, 1.0, 1.99, 2.0, 3.0])
    assert prompts.written(values, 2.0) == [0, 0, 0, 1, 5, 9, 10, 10]
    assert prompts.written(values, 0.0) == [0] * 8


def test_a_sparse_feature_is_shown_again_without_zeros() -> None:
    sparse = [0] * 9 + [10]
    system, user = prompts.explain([(TOKENS, sparse), (TOKENS, [0] * 10)])
    assert system["role"] == "system"
    assert user["content"].count(" cat\t0") == 2
    assert user["content"].count(":\t10") == 2
    assert "Text 2:\n the\t0" in user["content"]
    dense = prompts.explain([(TOKENS, [3] * 10)])[1]["content"]
    assert dense == "Text 1:\n" + "\n".join(f"{token}\t3" for token in TOKENS)


def test_a_simulation_is_asked_for_every_token() -> None:
    messages = prompts.simulate("cats", [TOKENS, TOKENS[:2]], again=False)
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[-1]["content"].count("\tunknown") == 12
    assert "cats" in messages[-1]["content"]
    example = [line.split("\t")[0] for line in messages[2]["content"].split("\n")]
    assert all(f"{token}\tunknown" in messages[1]["content"] for token in example)
    again = prompts.simulate("cats", [TOKENS, TOKENS[:2]], again=True)
    assert again[:-1] == messages[:-1]
    assert "exactly 12 lines" in again[-1]["content"]


@pytest.mark.parametrize(
    "text",
    [
        "words about pets.",
        "The unit responds to words about pets.",
        '"The unit responds to: words about pets."',
        "<think>It could be\n\ndogs.</think>\nThe unit responds to words about pets.\n\nSure?",
    ],
)
def test_explanation(text: str) -> None:
    assert prompts.read_explanation(answer(text)) == "words about pets"


@pytest.mark.parametrize("text", ["", "  \n", "The unit responds to.", "<think>so</think>"])
def test_no_explanation(text: str) -> None:
    with pytest.raises(prompts.Unreadable, match="cut off"):
        prompts.read_explanation(answer(text, finish="length"))


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES + "\n",
        LINES.replace("\n", "\r\n"),
        f"Here you are:\n```\n{LINES}\n```\nIs that all?",
        "\n".join(line.strip() for line in LINES.split("\n")),  # without the spaces before words
        LINES.replace("\t", "\t "),
        LINES.replace(" sat\t2", " sat: 2").replace(" mat\t5", " mat 5"),
        "Text 1:\n" + LINES.replace("\n", "\n\n"),
        LINES.replace(" cat\t", " kat\t"),  # one token is not as it was
    ],
)
def test_simulation(text: str) -> None:
    assert simulated(text) == NUMBERS


def test_a_line_that_is_missing_shifts_nothing() -> None:
    tokens = TOKENS * 4
    lines = [f"{token}\t{n % 10}" for n, token in enumerate(tokens)]
    told = simulated("\n".join(lines[:13] + lines[14:]), tokens)
    assert told == [0 if n == 13 else float(n % 10) for n in range(40)]
    extra = simulated("\n".join([*lines[:13], " dog\t9", *lines[13:]]), tokens)
    assert extra == [float(n % 10) for n in range(40)]
    for odd in ("11", "-1", "unknown", "many"):
        lines[13] = f"{tokens[13]}\t{odd}"
        assert simulated("\n".join(lines), tokens)[12:15] == [2, 0, 4]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do that.",
        "\n".join(str(n) for n in range(10)),
        LINES[: len(LINES) // 2],
        LINES.replace("\t", "\tunknown "),
        "\n".join(f"word\t{n}" for n in range(10)),
        "\n".join(f"{token}\t{n}" for n, token in enumerate(reversed(TOKENS))),
        LINES.replace(" cat\t1\n", "").replace(" sat\t2\n", ""),
    ],
)
def test_misaligned_simulations_are_noticed(text: str) -> None:
    with pytest.raises(prompts.Unreadable, match="of 10 tokens"):
        simulated(text)


def distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Levenshtein's, as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return distance(a[1:], b[1:])
    return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))


def test_alignment_is_the_cheapest() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = (tuple(draw.choices("xyz", k=draw.randrange(7))) for _ in range(2))
        places = align(a, b)
        assert len(places) == len(a)
        kept = [place for place in places if place is not None]
        assert kept == sorted(set(kept))
        altered = sum(p is not None and t != b[p] for t, p in zip(a, places, strict=True))
        cost = altered + (len(a) - len(kept)) + (len(b) - len(kept))
        assert cost == distance(a, b)


# --- probabilities


def spelled(*tokens: str | tuple[str, dict[str, float]], with_bytes: bool = True) -> list:
    """The tokens of an answer; a number with the probabilities of what could stand there."""
    made = []
    for token in tokens:
        text, chances = token if isinstance(token, tuple) else (token, {})
        made.append(
            SimpleNamespace(
                token=text,
                bytes=list(text.encode()) if with_bytes else None,
                top_logprobs=[
                    SimpleNamespace(token=t, logprob=math.log(p)) for t, p in chances.items()
                ],
            )
        )
    return made


@pytest.mark.parametrize("with_bytes", [True, False])
def test_expected_values_take_the_place_of_numbers(with_bytes: bool) -> None:
    tokens = spelled(
        "né", "\t", ("0", {"0": 0.5, "4": 0.25, "x": 0.25}), "\n", " dog",
        ("\t10", {"\t10": 0.6, " 5": 0.2, "11": 0.2}), "\n", "7", "\t", "7", with_bytes=with_bytes,
    )  # fmt: skip
    text = "".join(token.token for token in tokens)
    expected = expected_numbers(text, tokens, 10)
    assert dict(expected) == pytest.approx({3: 4 / 3, 10: 8.75})
    numbers = simulated(text, ["né", " dog", "7"], expected=expected)
    assert numbers == pytest.approx([4 / 3, 8.75, 7])


def test_a_number_in_two_tokens_is_itself() -> None:
    tokens = spelled("a", "\t", ("1", {"1": 0.9, "2": 0.1}), ("0", {"0": 0.9, "9": 0.1}))
    assert simulated("a\t10", ["a"], expected=expected_numbers("a\t10", tokens, 10)) == [10]


def test_tokens_that_do_not_spell_the_answer_are_not_believed() -> None:
    tokens = spelled("a", "\t", ("1", {"1": 0.5, "2": 0.5}))
    assert expected_numbers("b\t1", tokens, 10) == ()


# --- texts


def test_tokens_are_visible_on_one_line() -> None:
    assert [visible(t) for t in ("\n", "a\tb", " x", "", "\u200b", "é")] == [
        "\\n", "a\\tb", " x", "(empty)", "\\u200b", "é",
    ]  # fmt: skip
    asked = []

    def text(token: int) -> str:
        asked.append(token)
        return f"t{token}"

    read = reader(text)
    assert [read(3), read(3), reader(["a", "b"])(1)] == ["t3", "t3", "b"]
    assert asked == [3]


def test_rough_tokens() -> None:
    assert rough_tokens("The cat sat on the mat.") == 7
    assert rough_tokens(" the\t0\n cat\t10\n") == 8
    assert rough_tokens("") == 0


# --- the cache

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "é?"}], "temperature": 0.0}


def test_answers_are_found_again(tmp_path: Path) -> None:
    given = Answer("é\t7", "stop", 100, 7, ((2, 6.5), (9, 0.1)))
    Answers(tmp_path / "new").keep(REQUEST, given)
    assert Answers(tmp_path / "new").find(dict(reversed(REQUEST.items()))) == given
    other = Answers(tmp_path / "new")
    for change in ({"model": "n"}, {"temperature": 1.0}, {"seed": 1}, {"messages": []}):
        assert other.find({**REQUEST, **change}) is None
    memory = Answers()
    memory.keep(REQUEST, given)
    assert memory.find(REQUEST) == given


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"text"', '"words"'),
        lambda text: text.replace('"request": "', '"request": "0'),
        lambda text: json.dumps({**json.loads(text), "expected": [1]}),
        lambda text: json.dumps({**json.loads(text), "text": None}),
    ],
)
def test_a_damaged_answer_is_as_good_as_none(tmp_path: Path, damage) -> None:
    Answers(tmp_path).keep(REQUEST, answer("yes"))
    path = tmp_path / f"{name_of(REQUEST)}.json"
    path.write_text(damage(path.read_text()))
    answers = Answers(tmp_path)
    assert answers.find(REQUEST) is None
    answers.keep(REQUEST, answer("yes again"))
    assert Answers(tmp_path).find(REQUEST) == answer("yes again")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        Answers(tmp_path / "file")
