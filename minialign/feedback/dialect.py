"""How the model behind an address wants to be asked: learned from its refusals, and remembered.

Newer models refuse `max_tokens` or any temperature but their own; others know no seed; models that
think first spend the limit on thoughts.
"""

from __future__ import annotations

import re
import threading
from typing import Any

from minialign.feedback.teacher import Ask

REFUSES = re.compile(
    r"unsupported|not support|not accept|unrecognized|unknown|unexpected|not permitted|not allowed"
    r"|deprecated|only the default|extra",
    re.IGNORECASE,
)


class Dialect:
    """The parameters of a request. Threads share one.

    `learned` says in a line each how requests differ from what was wanted. `thinking_tokens` is the
    room that a model gets that thinks before it answers.
    """

    def __init__(self, thinking_tokens: int) -> None:
        self.thinking_tokens, self.learned = thinking_tokens, list[str]()
        self._room, self._lock = 0, threading.Lock()
        # Of each parameter the names that have not been refused; the first is sent.
        self._names = {
            "max_tokens": ["max_tokens", "max_completion_tokens"],
            "temperature": ["temperature"],
            "top_p": ["top_p"],
            "seed": ["seed"],
        }

    def parameters(self, ask: Ask) -> dict[str, Any]:
        """What is sent besides the model and the messages."""
        values = {
            "max_tokens": ask.max_tokens + self._room,
            "temperature": ask.temperature,
            "seed": ask.seed,
        }
        # Unless it is wanted it need not be understood.
        if ask.top_p < 1:
            values["top_p"] = ask.top_p
        with self._lock:
            return {self._names[k][0]: value for k, value in values.items() if self._names[k]}

    def learn_refusal(self, sent: dict[str, Any], said: str) -> bool:
        """Whether `said` refuses a parameter that was sent, so that asking otherwise may help."""
        if not REFUSES.search(said):
            return False
        refused = [name for name in sent if re.search(rf"\b{name}\b", said)]
        with self._lock:
            for names in self._names.values():
                # Another thread may have learned it meanwhile.
                if names and names[0] in refused:
                    refused_name = names.pop(0)
                    instead = f"{names[0]} is sent" if names else "the model's own holds"
                    self.learned.append(f"{refused_name} is refused: {instead}")
        return bool(refused)

    def learn_thoughts(self, ask: Ask, sent: dict[str, Any]) -> bool:
        """Whether a model whose limit ended in its thoughts can be given more room than it had."""
        limits = [value for name, value in sent.items() if name.startswith("max_")]
        with self._lock:
            if not limits or not self.thinking_tokens:
                return False
            if not self._room:
                self._room = self.thinking_tokens
                self.learned.append(f"it thinks first: {self._room} tokens more each time")
            return bool(limits[0] < ask.max_tokens + self._room)


def without_thoughts(text: str) -> str:
    """What follows the thoughts, where a server leaves them in the text; "" if nothing does."""
    _, closed, rest = text.rpartition("</think>")
    if closed:
        return rest.strip()
    return "" if text.lstrip().startswith("<think>") else text
