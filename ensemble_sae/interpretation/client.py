"""The endpoint that is asked, if one is given: chat completions as OpenAI-compatible servers do.

Nothing is sent unless a caller makes a `Client` and hands it over. The key is read from the
environment when a connection is opened and goes into the request's header alone; it is in no
attribute, no file and no message of this project.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ensemble_sae.errors import UserError
from ensemble_sae.interpretation.answers import Answer
from ensemble_sae.interpretation.logprobs import expected_numbers
from ensemble_sae.interpretation.prompts import LARGEST, Unreadable

# What may be left out when a server refuses it; `max_tokens` is first asked for by its newer name.
OPTIONS = ("top_logprobs", "logprobs", "max_tokens", "max_completion_tokens", "temperature", "seed")
_UNKNOWN_MODEL = re.compile(
    r"(unknown|invalid|no such) model|model\b.{0,60}(not found|does not exist)"
)


class Refused(Exception):
    """One request that is not answered; other requests may be."""


@dataclass(frozen=True)
class Client:
    """Where questions go, and how patiently.

    Attributes:
        base_url: of the API, such as "http://localhost:8000/v1".
        key_variable: the environment variable that holds the key; None for servers without keys.
        concurrency: how many requests are under way at most.
        timeout: seconds until a request counts as failed.
        retries: how often a request is sent again after 408, 409, 429, 5xx, a timeout or a broken
            connection, after pauses that double from half a second to 8 s (or as long as the
            server says).

    Raises:
        UserError: no address, no key, the package `openai` is missing, a number out of range.
    """

    base_url: str
    key_variable: str | None = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url or "")
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
            raise UserError(
                "The endpoint needs an address.",
                found=None if address.netloc else repr(self.base_url),
                allowed="a base URL such as https://api.openai.com/v1 or http://localhost:8000/v1, "
                "without a name or password in it",
            )
        if self.concurrency < 1 or self.retries < 0 or not self.timeout > 0:
            raise UserError(
                "The endpoint cannot be asked like this.",
                found=f"concurrency {self.concurrency}, timeout {self.timeout}, "
                f"retries {self.retries}",
                allowed="concurrency at least 1, a timeout above 0, no negative retries",
            )
        _package()
        self._key()

    @property
    def address(self) -> str:
        """The address for messages: without what may stand behind a "?"."""
        return self.base_url.partition("?")[0]

    def _key(self) -> str:
        if self.key_variable is None:
            return "none"
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise UserError(
                "There is no key for the endpoint.",
                where=f"environment variable {self.key_variable}",
                found="not set",
                next_step=f"export {self.key_variable}=..., or name another variable; a server "
                "that asks for no key needs none: --key-variable '' (in Python: key_variable=None)",
            )
        return key

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """A connection, for the event loop that runs; closed at the end."""
        key = self._key()
        made = _package().AsyncOpenAI(
            api_key=key, base_url=self.base_url, timeout=self.timeout, max_retries=self.retries
        )
        async with made as api:
            yield Connection(self, api, key)


class Connection:
    """An open connection: made by `Client.connect`."""

    def __init__(self, client: Client, api: Any, key: str) -> None:
        self._client, self._api, self._hide = client, api, key
        self._slots = asyncio.Semaphore(client.concurrency)
        self._without: defaultdict[str, set[str]] = defaultdict(set)
        self._over: UserError | None = None

    def __repr__(self) -> str:
        return f"Connection({self._client.address!r})"

    async def ask(self, request: dict[str, Any]) -> Answer:
        """Send one request and wait for its answer.

        An option that the server refuses (probabilities, the temperature, the limit by its old
        name) is left out from then on for that model.

        Raises:
            UserError: nothing can be had from this endpoint: it is not there, refuses the key, the
                model or further requests. Nothing more is sent then.
            Refused: it does not answer this request.
            Unreadable: what it sent is no chat completion.
        """
        async with self._slots:
            if self._over is not None:
                raise self._over
            try:
                return _answer(await self._sent(request))
            except UserError as error:
                self._over = error
                raise

    async def _sent(self, request: dict[str, Any]) -> Any:
        openai = _package()
        model = str(request["model"])
        while True:
            body = _adapted(request, self._without[model])
            try:
                return await self._api.chat.completions.create(**body)
            except openai.BadRequestError as error:
                option = _refused_option(error, body)
                if option is None or option in self._without[model]:
                    raise self._explained(error, model) from None
                self._without[model].add(option)
            except openai.OpenAIError as error:
                raise self._explained(error, model) from None
            except ValueError:  # a body that is not JSON
                raise Unreadable("the answer is not a chat completion") from None

    def _explained(self, error: Any, model: str) -> Exception:
        """What an error of the package means: for everything, or for this request."""
        openai, patience = _package(), f"after {self._client.retries + 1} attempts"
        status = getattr(error, "status_code", None)
        said = self._redacted(str(getattr(error, "message", "") or error))
        where = self._client.address
        if isinstance(error, openai.APITimeoutError):
            return Refused(f"no answer within {self._client.timeout:g} s, {patience}")
        if isinstance(error, openai.APIConnectionError):
            return UserError(
                "The endpoint cannot be reached.",
                where=where,
                found=self._redacted(str(error.__cause__ or error)),
                next_step="check the address and that the server runs; answers so far are kept",
            )
        if status in (401, 403):
            variable = self._client.key_variable
            return UserError(
                f"The endpoint refuses the key ({status}).",
                where=where,
                found=f"the key in {variable}" if variable else "no key was sent",
                next_step="check the key, and that it may use this model",
            )
        unknown = status == 400 and _is_unknown_model(error)
        if status == 404 or unknown:
            return UserError(
                f"The endpoint knows no such model or address ({status}).",
                where=where,
                found=f"model {model!r}; it says: {said}",
                next_step="check the model's name and the address, which often ends in /v1",
            )
        if status == 429:
            return UserError(
                f"The endpoint takes no further requests for now (429), {patience}.",
                where=where,
                found=said,
                next_step="start again later, with a lower concurrency; answers so far are kept",
            )
        return Refused(f"the endpoint answers {status or 'with an error'}, {patience}: {said}")

    def _redacted(self, text: str) -> str:
        return text.replace(self._hide, "***")[:300]


def _package() -> Any:
    try:
        import openai
    except ImportError:
        raise UserError(
            "Asking a language model needs the package openai.",
            next_step="pip install 'ensemble-sae[interpret]'",
        ) from None
    return openai


def _is_unknown_model(error: Any) -> bool:
    said = str(error.message).lower()
    return error.code == "model_not_found" or _UNKNOWN_MODEL.search(said) is not None


def _adapted(request: dict[str, Any], without: set[str]) -> dict[str, Any]:
    """The request without the options that a server refuses."""
    body = dict(request)
    if "max_tokens" in without and "max_tokens" in body:
        body["max_completion_tokens"] = body["max_tokens"]
    if "logprobs" in without:
        body.pop("top_logprobs", None)
    return {name: value for name, value in body.items() if name not in without}


def _refused_option(error: Any, body: dict[str, Any]) -> str | None:
    """The option that an error is about, if it is about one."""
    if error.param in OPTIONS and error.param in body:
        return "logprobs" if error.param == "top_logprobs" else str(error.param)
    said = str(error.message)
    named = [name for name in OPTIONS if name in body and name in said]
    if not named:
        return None
    return "logprobs" if "logprobs" in named[0] else named[0]


def _answer(response: Any) -> Answer:
    try:
        choice = response.choices[0]
        text = choice.message.content or ""
        if not isinstance(text, str):
            raise TypeError(text)
        usage = getattr(response, "usage", None)
        counts = [int(getattr(usage, f"{n}_tokens", 0) or 0) for n in ("prompt", "completion")]
        content = getattr(getattr(choice, "logprobs", None), "content", None)
        expected = expected_numbers(text, content or (), LARGEST)
        return Answer(text, str(choice.finish_reason), counts[0], counts[1], expected)
    except (AttributeError, TypeError, IndexError, ValueError):
        raise Unreadable("the answer is not a chat completion") from None
