"""Questions to teachers, and teachers that answer as a test wants."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from helpers.loopback import Loopback
from minialign.feedback.endpoint import EndpointTeacher
from minialign.feedback.teacher import Answer, Ask, Failure, OnDone, Reply

YES = Reply("yes", "stop")


def ask(question: str, **changes: Any) -> Ask:
    return Ask((("user", question),), **{"max_tokens": 8, "temperature": 0.0, **changes})


def asks(count: int) -> list[Ask]:
    return [ask(f"question {number}") for number in range(count)]


def endpoint(server: Loopback, **options: Any) -> EndpointTeacher:
    return EndpointTeacher(server.url, "some-model", **options)


def reason(answer: Answer) -> str:
    assert isinstance(answer, Failure)
    assert answer.reason and "\n" not in answer.reason
    return answer.reason


def noise(text: str, count: int = 4) -> str:
    """Words that no other text gives."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return " ".join(digest[4 * i : 4 * i + 4] for i in range(count))


def numbered(entries: Sequence[str]) -> str:
    return "\n".join(f"{number}. {entry}" for number, entry in enumerate(entries, start=1))


def helpful(question: str) -> str:
    """What an able teacher answers to each of the pipeline's questions."""
    if "DOMAIN:" in question:
        return "DOMAIN: e-mails to my boss\nEFFECT: contain no exclamation marks"
    if "categories of requests" in question:
        return numbered([f"kind {noise(str(i), 1)}" for i in range(3)])
    if "REVISED PROMPTS:" in question:
        listed = [line.split(". ", 1)[1] for line in question.splitlines() if line[:1].isdigit()]
        return "THOUGHTS: The last one is vague.\nREVISED PROMPTS:\n" + numbered(
            [*listed[:-1], f"{listed[-1]} today"]
        )
    if "numbered list with one request" in question:
        return numbered([f"please write about {noise(question + str(i))}" for i in range(4)])
    return respond(question)


def respond(question: str) -> str:
    """What an able student answers."""
    if "REQUEST:" in question:
        return "Here is the revised response:\n\n" + question.split("RESPONSE:\n")[1].split("!")[0]
    if "THOUGHTS:" in question:
        return f"THOUGHTS: It may apply.\nRESPONSE: thought {noise(question)}"
    return f"Hello {noise(question)}!"


def able(ask: Ask) -> Answer:
    return Reply(helpful(question(ask)), "stop")


class Scripted:
    """Answers in order, and is interrupted once `stop` says so."""

    def __init__(
        self,
        write: Callable[[Ask], Answer] = able,
        *,
        name: str = "scripted",
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.write, self.name, self.stop = write, name, stop
        self.asked: list[Ask] = []

    def answer(self, asks: Sequence[Ask], on_done: OnDone | None = None) -> list[Answer]:
        answers = []
        for index, ask in enumerate(asks):
            if self.stop():
                raise KeyboardInterrupt
            self.asked.append(ask)
            answers.append(self.write(ask))
            if on_done:
                on_done(index, answers[-1])
        return answers


def plain(write: Callable[[str], str]) -> Scripted:
    """A teacher that never fails, from question to text."""
    return Scripted(lambda ask: Reply(write(question(ask)), "stop"))


def question(ask: Ask) -> str:
    return ask.messages[-1][1]
