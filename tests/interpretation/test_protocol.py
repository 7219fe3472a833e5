"""Explain, simulate, score, against a local server that speaks chat completions."""

from __future__ import annotations

import asyncio
import builtins
import math
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from interpretation.chat_server import (
    SOON,
    Reply,
    asked_tokens,
    completion,
    is_simulation,
    knowing,
    problem,
    serving,
)
from interpretation.planted import examples, text

from ensemble_sae.errors import UserError
from ensemble_sae.interpretation import prompts
from ensemble_sae.interpretation.answers import Answers
from ensemble_sae.interpretation.client import Client
from ensemble_sae.interpretation.cost import Estimate, Load, estimate
from ensemble_sae.interpretation.fragments import split
from ensemble_sae.interpretation.protocol import SILENT, Spent, interpret
from ensemble_sae.interpretation.questions import Protocol
from ensemble_sae.interpretation.scores import score

pytest.importorskip("openai")

KEY = "sk-not-to-be-seen-anywhere-0123456789"
TOKENS = text(40)
NAMES = [f" w{token}" for token in range(40)]
PROTOCOL = Protocol("wise", "quick", logprobs=False)


def activation(token: str) -> int:
    """Of both features: words with 3, 13, ... by their tens."""
    number = int(token.strip().removeprefix("w"))
    return 1 + 3 * (number // 10) if number % 10 == 3 else 0


VALUES = torch.tensor([activation(name) for name in NAMES]).float()[TOKENS.long()]
GIVEN = examples(TOKENS, torch.stack([VALUES, 2 * VALUES]))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def of(*places: int):
    return GIVEN.of(torch.tensor(places))


def asked(server, given=GIVEN, protocol=PROTOCOL, answers=None, **more):
    patience = {"timeout": 5.0, "retries": 3, **more}
    return interpret(given, NAMES, protocol, Client(server.url, **patience), answers)


def test_a_model_that_knows_scores_one() -> None:
    with serving(knowing(activation)) as server:
        found = asked(server)
    for values in found.score:
        assert values.tolist() == pytest.approx([1, 1])
    assert found.explanations == ["words with a secret"] * 2
    assert found.failed == [None, None]
    assert server.keys == {f"Bearer {KEY}"}
    assert server.paths == {"/v1/chat/completions"}
    assert {request["model"] for request in server.explanations} == {"wise"}
    assert {request["model"] for request in server.simulations} == {"quick"}
    assert all("words with a secret" in r["messages"][-1]["content"] for r in server.simulations)


def test_what_is_shown_is_the_published_choice() -> None:
    with serving(knowing(activation)) as server:
        asked(server, of(1))
    (request,) = server.explanations
    parts = split(of(1))
    largest = parts.shown.activations.max()
    for place in range(5):
        tokens = [NAMES[t] for t in parts.shown.tokens[0, place]]
        numbers = (10 * parts.shown.activations[0, place] / largest).floor().int().tolist()
        lines = "\n".join(f"{t}\t{n}" for t, n in zip(tokens, numbers, strict=True))
        assert lines in request["messages"][-1]["content"]
    told = {tuple(asked_tokens(request)) for request in server.simulations}
    scored = torch.cat([parts.top.tokens, parts.random.tokens], 1)[0].tolist()
    assert told == {tuple(NAMES[t] for t in row) for row in scored}


@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_a_model_that_half_knows_is_scored_as_it_answered(at_once: int) -> None:
    def half(token: str) -> int:
        return len(token) + activation(token) // 4

    with serving(knowing(half)) as server:
        protocol = Protocol("wise", "quick", logprobs=False, fragments_per_request=at_once)
        found = asked(server, of(0), protocol)
    assert len(server.simulations) == math.ceil(10 / at_once)
    parts = split(of(0))
    table = torch.tensor([half(name) for name in NAMES]).float()
    top, random = (table[contexts.tokens.long()] for contexts in (parts.top, parts.random))
    assert torch.equal(found.top, top)
    assert torch.equal(found.random, random)
    expected = score(parts, top, random)
    assert all(torch.equal(a, b) for a, b in zip(found.score, expected, strict=True))
    assert 0 < found.score.top[0] < 0.9


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    with serving(knowing(activation)) as server:
        first = asked(server, answers=Answers(tmp_path))
        sent = len(server.requests)
        again = asked(server, answers=Answers(tmp_path))
    assert sent == len(server.requests) == sum(s.sent for s in first.spent)
    assert [s.sent for s in again.spent] == [0, 0]
    assert again.explanations == first.explanations
    assert torch.equal(again.top, first.top)
    # The two features are told by the same fragments and numbers: each question is asked once.
    assert sent == 11 + 5
    assert first.spent[0][1:] == again.spent[0][1:] == (1100, 77)


def test_the_cache_is_of_no_address(tmp_path: Path) -> None:
    with serving(knowing(activation)) as server:
        first = asked(server, answers=Answers(tmp_path))
    with serving(lambda request, number: problem(500, "no")) as other:
        again = asked(other, answers=Answers(tmp_path))
    assert other.requests == []
    assert torch.equal(first.random, again.random)


def test_the_key_is_in_no_file_and_no_text(tmp_path: Path, caplog, capfd) -> None:
    caplog.set_level("DEBUG")
    client = Client("http://127.0.0.1:1/v1")

    def telling(request, number):
        return (
            problem(401, f"wrong key: {KEY}") if number == 11 else knowing(activation)(request, 0)
        )

    def tell_more(request, number):
        return problem(400, f"your key is {KEY}")

    with serving(telling) as server, pytest.raises(UserError) as refused:
        asked(server, answers=Answers(tmp_path), concurrency=1)
    with serving(tell_more) as server:
        failed = asked(server, of(0)).failed[0]
    files = list(tmp_path.rglob("*"))
    assert len(files) == 11
    texts = [path.read_text() for path in files] + [path.name for path in files]
    texts += [repr(client), str(vars(client)), str(refused.value), repr(refused.value), str(failed)]
    texts += [caplog.text, *capfd.readouterr()]
    assert all(KEY not in one for one in texts)
    assert "***" in str(failed)


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_requests_at_once_than_allowed(limit: int) -> None:
    def slowly(request, number):
        reply = knowing(activation)(request, number)
        reply.pause = 0.02
        return reply

    with serving(slowly) as server:
        asked(server, concurrency=limit)
    assert server.most == limit


@pytest.mark.parametrize(
    "trouble",
    [
        problem(429, "slow down"),
        problem(500, "oh"),
        problem(503, "oh"),
        Reply(body={}, pause=0.6),
    ],
    ids=["429", "500", "503", "timeout"],
)
def test_passing_trouble_is_asked_again(trouble: Reply) -> None:
    def script(request, number):
        return trouble if number in (0, 2) else knowing(activation)(request, number)

    with serving(script) as server:
        found = asked(server, of(0), concurrency=1, timeout=0.3)
    assert found.failed == [None]
    assert len(server.requests) == 13
    assert found.score.top_and_random[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (problem(500, "broken"), "500.*2 attempts.*broken"),
        (Reply(body={}, pause=0.3), "no answer within 0.1 s, after 2 attempts"),
        (problem(400, "the text is too long"), "400.*too long"),
        (Reply(body=b"<html>hello</html>"), "no|not a chat completion"),
        (Reply(body=b"<html></html>", headers={"content-type": "text/html"}), "not a chat"),
        (Reply(body={"choices": []}), "not a chat completion"),
        (Reply(body={"choices": [{"message": {"content": [1]}}]}), "not a chat completion"),
        (completion("I would rather not."), "of 64 tokens 0 are as they were"),
        (completion("w1\t3\n", finish="length"), "cut off"),
        (completion(None), "of 64 tokens"),
    ],
    ids=["500", "timeout", "400", "html", "page", "empty", "odd", "words", "cut", "none"],
)
def test_one_feature_fails_and_the_others_go_on(trouble: Reply, says: str) -> None:
    """Feature 0 has trouble with its first simulated fragment; feature 1 is another."""
    other = examples(TOKENS, torch.stack([VALUES, (TOKENS == 2).float()]))
    first = [NAMES[t] for t in split(other).top.tokens[0, 0]]

    def script(request, number):
        if is_simulation(request) and asked_tokens(request) == first:
            return trouble
        return knowing(activation)(request, number)

    with serving(script) as server:
        found = asked(server, other, retries=1, timeout=0.1 if trouble.pause else 5.0)
    assert found.failed[1] is None
    assert not found.score.top_and_random[1].isnan()
    assert re.search(says, str(found.failed[0]), re.DOTALL)
    assert found.explanations[0] == "words with a secret"
    assert all(values[0].isnan() for values in found.score)
    assert found.top[0].isnan().all()


def test_an_unreadable_answer_is_asked_for_once_more() -> None:
    def script(request, number):
        wanted = "Answer with exactly" in request["messages"][-1]["content"]
        if is_simulation(request) and not wanted:
            return completion("0 0 0")
        return knowing(activation)(request, number)

    with serving(script) as server:
        found = asked(server, of(0))
    assert found.failed == [None]
    assert len(server.simulations) == 20
    assert [r.get("seed") for r in server.simulations].count(1) == 10


def test_unreadable_answers_are_not_asked_for_again(tmp_path: Path) -> None:
    with serving(lambda request, number: completion("")) as server:
        first = asked(server, of(0), answers=Answers(tmp_path))
        again = asked(server, of(0), answers=Answers(tmp_path))
    assert first.failed == again.failed == ["the explanation is empty"]
    assert len(server.requests) == 2
    assert estimate(of(0), NAMES, PROTOCOL, Answers(tmp_path)).total == (2, 0, 0, 0)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (problem(401, "bad key"), r"refuses the key \(401\)"),
        (problem(403, "not yours"), r"refuses the key \(403\)"),
        (problem(404, "The model `wise` does not exist"), r"no such model or address \(404\)"),
        (problem(404, "Not found"), "often ends in /v1"),
        (problem(400, "no", code="model_not_found"), r"no such model or address \(400\)"),
        (problem(400, "invalid model ID"), r"no such model or address \(400\)"),
        (problem(429, "quota"), r"no further requests for now \(429\), after 4 attempts"),
    ],
)
def test_what_no_feature_can_have_ends_the_run(trouble: Reply, says: str) -> None:
    with serving(lambda request, number: trouble) as server, pytest.raises(UserError, match=says):
        asked(server, concurrency=1)
    assert len(server.requests) <= 4


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1?token=abc"
        with pytest.raises(UserError, match="cannot be reached") as found:
            interpret(GIVEN, NAMES, PROTOCOL, Client(url, retries=0))
    assert "token=abc" not in str(found.value)


def test_what_was_answered_before_the_end_is_kept(tmp_path: Path) -> None:
    def script(request, number):
        return problem(401, "enough") if number == 5 else knowing(activation)(request, number)

    with serving(script) as server:
        with pytest.raises(UserError):
            asked(server, of(0), answers=Answers(tmp_path), concurrency=1)
        assert len(list(tmp_path.glob("*.json"))) == 5
        expected = estimate(of(0), NAMES, PROTOCOL, Answers(tmp_path))
        found = asked(server, of(0), answers=Answers(tmp_path), concurrency=1)
    assert (expected.total.answered, expected.total.requests) == (5, 6)
    assert found.spent[0].sent == 6
    assert len(server.requests) == 5 + 1 + 6


def test_an_interruption_keeps_what_was_answered(tmp_path: Path, request) -> None:
    def progress(done: int, of_all: int) -> None:
        signal.raise_signal(signal.SIGINT)

    # Whoever runs the tests in the background may have Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with serving(knowing(activation)) as server:
        client = Client(server.url, concurrency=1)
        with pytest.raises(KeyboardInterrupt):
            interpret(GIVEN, NAMES, PROTOCOL, client, Answers(tmp_path), progress)
        sent = len(server.requests)
        assert len(list(tmp_path.glob("*.json"))) >= 11
        asked(server, answers=Answers(tmp_path))
    assert len(server.requests) <= sent + 6


def test_inside_an_event_loop() -> None:
    async def notebook(server):
        return asked(server, of(0))

    with serving(knowing(activation)) as server:
        found = asyncio.run(notebook(server))
    assert found.failed == [None]
    with serving(lambda request, number: problem(401, "no")) as server, pytest.raises(UserError):
        asyncio.run(notebook(server))


def test_progress_and_the_table() -> None:
    seen = []
    given = examples(TOKENS, torch.stack([VALUES, 0 * VALUES, -VALUES]))
    with serving(knowing(activation)) as server:
        client = Client(server.url)
        found = interpret(given, NAMES, PROTOCOL, client, progress=lambda *n: seen.append(n))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    frame = found.frame()
    assert list(frame.columns) == [
        "explanation", "top", "random", "top_and_random", "failed", "sent", "tokens_in",
        "tokens_out",
    ]  # fmt: skip
    assert frame.index.name == "feature"
    assert frame["failed"].tolist() == [None, SILENT, SILENT]
    assert frame["sent"].tolist() == [11, 0, 0]
    assert frame.loc[0, "top"] == pytest.approx(1)
    assert math.isnan(frame.loc[1, "top"])


# --- probabilities and options


def with_logprobs(request, number):
    """Says 0 everywhere, and means the truth."""
    if not is_simulation(request):
        return completion("words")
    assert request["logprobs"] is True
    assert request["top_logprobs"] == 15
    content = []
    for token in asked_tokens(request):
        meant = activation(token) / 10
        chances = {t: p for t, p in (("0", 1 - meant), ("10", meant)) if p > 0}
        for piece, alternatives in ((token, {}), ("\t", {}), ("0", chances), ("\n", {})):
            top = [{"token": t, "logprob": math.log(p)} for t, p in alternatives.items()]
            spelled = {"token": piece, "logprob": 0.0, "bytes": list(piece.encode())}
            content.append({**spelled, "top_logprobs": top})
    return completion("".join(piece["token"] for piece in content), content)


def test_probabilities_are_expected_values(tmp_path: Path) -> None:
    with serving(with_logprobs) as server:
        protocol = Protocol("wise", "quick")
        found = asked(server, of(0), protocol, Answers(tmp_path))
        again = asked(server, of(0), protocol, Answers(tmp_path))
    assert found.score.top_and_random[0] == pytest.approx(1)
    assert torch.equal(found.top, again.top)
    assert len(server.requests) == 11
    assert all("logprobs" not in request for request in server.explanations)


def test_options_that_a_server_refuses_are_left_out(tmp_path: Path) -> None:
    refusals = {
        "logprobs": problem(400, "logprobs are not supported here", param="logprobs"),
        "max_tokens": problem(400, "Unsupported: 'max_tokens'. Use 'max_completion_tokens'."),
        "temperature": problem(400, "'temperature' does not support 0.0", param="temperature"),
    }

    def script(request, number):
        for name, reply in refusals.items():
            if name in request:
                return reply
        assert "top_logprobs" not in request
        assert request["max_completion_tokens"] > 100
        return knowing(activation)(request, number)

    with serving(script) as server:
        protocol = Protocol("one", "one")
        found = asked(server, of(0), protocol, Answers(tmp_path), concurrency=1)
        assert found.failed == [None]
        assert len(server.requests) == 11 + 3
        asked(server, of(0), protocol, Answers(tmp_path))
    assert len(server.requests) == 14


# --- the client


@pytest.mark.parametrize("url", ["", None, "localhost:8000", "ftp://x/v1", "http://a:b@c/v1"])
def test_an_endpoint_needs_an_address(url) -> None:
    with pytest.raises(UserError, match="needs an address") as found:
        Client(url)
    assert "a:b" not in str(found.value)


def test_an_endpoint_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="environment variable MY_KEY"):
        Client("http://localhost/v1", key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", "other")
    with serving(knowing(activation)) as server:
        asked(server, of(0), key_variable="MY_KEY")
        asked(server, of(0), key_variable=None)
    assert server.keys == {"Bearer other", "Bearer none"}


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openai", raising=False)
    real = builtins.__import__

    def without(name, *rest):
        if name == "openai":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"ensemble-sae\[interpret\]"):
        Client("http://localhost/v1")


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"timeout": 0.0}, {"retries": -1}])
def test_settings_of_the_client(options: dict) -> None:
    with pytest.raises(UserError):
        Client("http://localhost/v1", **options)


@pytest.mark.parametrize(
    "options",
    [{"explainer": ""}, {"fragments_per_request": 0}, {"attempts": 0}, {"temperature": -1.0}],
)
def test_settings_of_the_protocol(options: dict) -> None:
    with pytest.raises(UserError):
        Protocol(**{"explainer": "a", "simulator": "b", **options})


# --- the estimate


def test_estimate_counts_what_is_then_sent(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    before = estimate(of(0), NAMES, PROTOCOL, answers, count=len)
    with serving(knowing(activation)) as server:
        asked(server, of(0), answers=answers)
    after = estimate(of(0), NAMES, PROTOCOL, answers, count=len)
    assert (before.explain.requests, before.simulate.requests) == (1, 10)
    assert after == Estimate(Load(1, 0, 0, 0), Load(10, 0, 0, 0))

    def characters(requests) -> int:
        return sum(len(m["content"]) for request in requests for m in request["messages"])

    assert before.explain.tokens_in == characters(server.explanations)
    longer = len("word " * 60) - len("words with a secret")
    assert before.simulate.tokens_in == characters(server.simulations) + 10 * longer
    lines = [prompts.zeros([asked_tokens(request)]) for request in server.simulations]
    assert before.simulate.tokens_out == sum(map(len, lines))


def test_estimate_in_money() -> None:
    found = Estimate(Load(0, 10, 2_000_000, 100_000), Load(5, 100, 1_000_000, 900_000))
    assert found.total.price(2.0, 10.0) == pytest.approx(16.0)
    text = found.text(2.0, 10.0)
    assert "price:    about 16.00" in text
    assert "100 requests, about 1,000,000 tokens in and 900,000 out; 5 answered already" in text
    assert "price" not in found.text()


def test_spent_is_counted_by_the_endpoint() -> None:
    with serving(knowing(activation)) as server:
        assert asked(server, of(0)).spent == [Spent(11, 1100, 77)]
    assert SOON
