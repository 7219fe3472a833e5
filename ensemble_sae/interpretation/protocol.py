"""Explain, simulate, score, with language models.

Source: Bills et al. 2023, "Language models can explain neurons in language models"; applied to
dictionaries as in Cunningham et al. 2023, "Sparse autoencoders find highly interpretable features
in language models", section 3. Differences are in the docs of `questions.Protocol`,
`fragments.split` and `scores.score`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ensemble_sae.inspection.examples import Examples
from ensemble_sae.interpretation.answers import Answers, name_of
from ensemble_sae.interpretation.client import Client, Connection, Refused
from ensemble_sae.interpretation.fragments import Split, split
from ensemble_sae.interpretation.prompts import Unreadable
from ensemble_sae.interpretation.questions import Protocol, Question, to_explain, to_simulate
from ensemble_sae.interpretation.scores import Score, score
from ensemble_sae.lm.texts import Texts, reader

if TYPE_CHECKING:
    import pandas as pd

SILENT = "never active in the fragments shown"


class Spent(NamedTuple):
    """What the record of one feature rests on: answers from the cache count, too.

    Attributes:
        sent: requests that were sent for it this time.
        tokens_in, tokens_out: of all its answers, as the endpoint counted.
    """

    sent: int
    tokens_in: int
    tokens_out: int


class Interpretation(NamedTuple):
    """What was said of F features, and how well it foretells them.

    Attributes:
        features: which of the dictionary, int64 `[F]`.
        explanations: what each responds to; None where nobody said.
        failed: why a feature has no score; None where it has.
        top, random: what was simulated on the scored fragments, from 0 to 10, `[F, scored, w]`;
            NaN where it failed.
        score: of that; NaN where it failed.
        spent: on each feature.
    """

    features: Tensor
    explanations: list[str | None]
    failed: list[str | None]
    top: Tensor
    random: Tensor
    score: Score
    spent: list[Spent]

    def frame(self) -> pd.DataFrame:
        """A row for each feature: explanation, scores, why it failed, requests and tokens."""
        import pandas as pd

        scores = {name: values.numpy() for name, values in self.score._asdict().items()}
        words = {
            name: pd.Series(own, dtype=object)  # None stays None
            for name, own in (("explanation", self.explanations), ("failed", self.failed))
        }
        columns = {"explanation": words["explanation"], **scores, "failed": words["failed"]}
        spent = pd.DataFrame(self.spent, columns=list(Spent._fields))
        frame = pd.concat([pd.DataFrame(columns), spent], axis=1)
        return frame.set_index(pd.Index(self.features.numpy(), name="feature"))


def interpret(
    examples: Examples,
    texts: Texts,
    protocol: Protocol,
    client: Client,
    answers: Answers | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Interpretation:
    """Explain every feature by one model, simulate it by another, score.

    Interrupted (Ctrl-C, an error), whatever was answered is in `answers`: the same call goes on
    from there. A feature whose answers cannot be read, or are refused, is marked as failed, and
    the others go on.

    Args:
        examples: of the features.
        texts: the text of every token id.
        protocol: models and settings.
        client: whom to ask.
        answers: the cache; one that lasts as long as this call, if None.
        progress: called with (features done, features in all) after each.

    Raises:
        UserError: too few fragments; the endpoint is not there, or refuses the key, a model or
            further requests.
    """
    run = _Run(examples, texts, protocol, answers or Answers(), progress)
    _finish(run.ask_all(client))
    return run.result()


class _Run:
    """One call of `interpret`."""

    def __init__(
        self,
        examples: Examples,
        texts: Texts,
        protocol: Protocol,
        answers: Answers,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.features, self.protocol, self.answers = examples.features, protocol, answers
        self.parts = split(
            examples, shown=protocol.shown, scored=protocol.scored, fit_top=0, fit_random=0
        )
        self.read, self.progress, self.done = reader(texts), progress, 0
        n = len(self.features)
        self.explanations: list[str | None] = [None] * n
        self.failed: list[str | None] = [None] * n
        self.spent = [Spent(0, 0, 0)] * n
        shape = self.parts.top.tokens.shape
        self.simulated = torch.full((2, *shape), float("nan"))
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ask_all(self, client: Client) -> None:
        """All features; as many at a time as there may be requests, so that the first are done
        before the last begin."""
        slots = asyncio.Semaphore(client.concurrency)
        async with client.connect() as connection, asyncio.TaskGroup() as group:
            for feature in range(len(self.features)):
                group.create_task(self._feature(feature, connection, slots))

    async def _feature(self, f: int, connection: Connection, slots: asyncio.Semaphore) -> None:
        async with slots:
            own = Split(*(c.of(torch.tensor([f])) for c in self.parts))
            try:
                await self._explained_and_simulated(f, own, connection)
            except (Unreadable, Refused) as problem:
                self.simulated[:, f] = float("nan")
                self.failed[f] = str(problem)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, len(self.features))

    async def _explained_and_simulated(self, f: int, own: Split, connection: Connection) -> None:
        question = to_explain(self.protocol, own, self.read)
        if question is None:
            raise Unreadable(SILENT)
        meaning = str(await self._asked(f, question, connection))
        self.explanations[f] = meaning
        simulations = to_simulate(self.protocol, own, self.read, meaning)
        asked = (self._asked(f, question, connection) for question in simulations.questions)
        # All are waited for, so that none is under way any more when one has failed.
        numbers = await asyncio.gather(*asked, return_exceptions=True)
        width = own.top.tokens.shape[-1]
        self.simulated[:, f] = 0.0
        for told, places in zip(numbers, simulations.places, strict=True):
            if isinstance(told, BaseException):
                raise told
            for (kind, place), row in zip(places, torch.tensor(told).split(width), strict=True):
                self.simulated[kind, f, place] = row

    async def _asked(self, f: int, question: Question, connection: Connection) -> Any:
        """The meaning of an answer, from the cache or the endpoint, at the first readable one."""
        problem = Unreadable("")
        for attempt in range(self.protocol.attempts):
            request = question.request(attempt)
            async with self.locks[name_of(request)]:  # two features may ask the same
                answer = self.answers.find(request)
                if answer is None:
                    self._spend(f, 1, 0, 0)
                    answer = await connection.ask(request)
                    self.answers.keep(request, answer)
            self._spend(f, 0, answer.tokens_in, answer.tokens_out)
            try:
                return question.read(answer)
            except Unreadable as unreadable:
                problem = unreadable
        raise problem

    def _spend(self, f: int, *more: int) -> None:
        self.spent[f] = Spent(*(a + b for a, b in zip(self.spent[f], more, strict=True)))

    def result(self) -> Interpretation:
        """What came of it."""
        top, random = self.simulated
        return Interpretation(
            self.features,
            self.explanations,
            self.failed,
            top,
            random,
            score(self.parts, top, random),
            self.spent,
        )


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, whether or not the caller is in an event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        try:
            asyncio.run(work)
        except BaseExceptionGroup as group:
            raise _first(group) from None
    else:
        _finish_beside(work)


def _finish_beside(work: Coroutine[Any, Any, None]) -> None:
    """Run in a thread with a loop of its own, and stop asking when the caller is interrupted."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    problems: list[BaseException] = []

    def run() -> None:
        try:
            loop.run_until_complete(task)
            loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as error:
            problems.append(_first(error))
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="interpret")
    thread.start()
    try:
        thread.join()
    except BaseException:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if problems:
        raise problems[0]


def _first(error: BaseException) -> BaseException:
    """The first error of a group of groups; an error by itself."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
