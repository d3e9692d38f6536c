"""Predictions as lines of JSON while they are made; a caller who does not read them is cut off at his deadline.

>>> answers = service.predict(["grace hopper"], steps=True)
>>> Lines(lines(await anext(answers), answers, deadline, figures), deadline)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import HTTPException
from fastapi.responses import StreamingResponse

from hyperflax.errors import HyperflaxError
from hyperflax.serving.messages import Prediction
from hyperflax.serving.middleware import Figures, told
from hyperflax.serving.service import Answer

_Result = TypeVar("_Result")
LAST_LINE = 1.0  # seconds that a caller has for it, after his deadline


@dataclasses.dataclass(frozen=True)
class Deadline:
    """When an answer is given up.

    Attributes:
      seconds: as they were asked for, which is what a caller is told.
      end: on the clock of `time.monotonic`.
    """

    seconds: float
    end: float

    @classmethod
    def within(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(seconds, time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds that are left; less than 0 when it has passed."""
        return self.end - time.monotonic()

    async def hold(self, work: Awaitable[_Result]) -> _Result:
        """Returns what the work does, which is given up with 504 when the deadline passes."""
        try:
            async with asyncio.timeout(self.left):
                return await work
        except TimeoutError:
            raise HTTPException(504, f"no answer within {self.seconds:g} s") from None


class Lines(StreamingResponse):
    """Sends text as it comes, and takes no longer than the deadline over it, however slowly it is read.

    Where a caller reads too slowly, what is sent waits for him: nobody else would ever end it. The answer breaks off
    then, without the end that would make it whole.
    """

    def __init__(self, text: AsyncGenerator[str, None], deadline: Deadline):
        super().__init__(text, media_type="application/x-ndjson")
        self.text, self.deadline = text, deadline

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_in_time(message: Any) -> None:
            async with asyncio.timeout(max(self.deadline.left, LAST_LINE)):
                await send(message)

        # Closed by name: a generator that is left while it waits to go on would hold its rows until it is collected.
        async with contextlib.aclosing(self.text):
            with contextlib.suppress(TimeoutError):
                await super().__call__(scope, receive, send_in_time)


def predictions(answers: Sequence[Answer]) -> list[Prediction]:
    """Answers as messages."""
    return [Prediction(index=index, **vars(answer)) for index, answer in enumerate(answers)]


async def lines(
    first: list[Answer], rest: AsyncGenerator[list[Answer], None], deadline: Deadline, figures: Figures
) -> AsyncGenerator[str, None]:
    """One line for every prediction that has changed; a deadline that passes ends with a line that says so."""
    before: list[Answer | None] = [None] * len(first)
    answers: list[Answer] | None = first
    try:
        while answers is not None:
            changed = [
                prediction.model_dump_json() + "\n"
                for prediction, old, new in zip(predictions(answers), before, answers, strict=True)
                if new != old
            ]
            before = [*answers]
            if changed:
                yield "".join(changed)  # together: every part that is sent is a turn of the loop
            try:
                answers = await deadline.hold(anext(rest))
            except StopAsyncIteration:
                answers = None
    except HTTPException as error:
        yield json.dumps({"error": error.detail}) + "\n"
    except HyperflaxError as error:
        yield json.dumps({"error": told(error)}) + "\n"
    finally:
        figures.count([answer for answer in before if answer is not None])
        await rest.aclose()
