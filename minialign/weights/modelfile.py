"""Ollama's Modelfile: the chat template in Go's language, stop tokens and sampling.

A chat template is a program, and Ollama runs another kind of program. But between two people who
take turns every template writes the same few texts around what they say, so these are found out by
letting it write around placeholders. What is found is tried on longer conversations; a template
that does more is left out, with a warning, rather than written wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass

from minialign.data.records import Messages
from minialign.errors import InputError
from minialign.weights.tokenizer import Tokenizer

SYSTEM, USER, ANSWER, LAST = "⟦system⟧", "⟦user⟧", "⟦answer⟧", "⟦last⟧"


@dataclass(frozen=True)
class Turns:
    """What a template writes around the texts of a conversation."""

    start: str  # before the first text of the user
    system_start: str | None  # before the system's text, if there may be one,
    system_end: str  # and between it and the user's
    answer_start: str  # between the user's text and the answer
    answer_end: str  # between the answer and the user's next text
    end: str  # after the user's last text

    def written(self, messages: Messages) -> str:
        """What Ollama will make of a conversation that begins with the user or the system."""
        text, seen, system = "", False, ""
        for message in messages:
            content = message["content"]
            if message["role"] == "system":
                system = content
            elif message["role"] == "assistant":
                text += self.answer_start + content
            elif seen:
                text += self.answer_end + content
            else:
                opening = f"{self.system_start}{system}{self.system_end}" if system else self.start
                text, seen = text + opening + content, True
        return text + self.end

    def in_go(self) -> str:
        system = ""
        if self.system_start is not None:
            around = f"{_go(self.system_start)}{{{{ $.System }}}}{_go(self.system_end)}"
            system = f"{{{{ else if $.System }}}}{around}"
        return (
            "{{ $seen := false }}{{ range .Messages }}"
            '{{ if eq .Role "user" }}'
            f"{{{{ if $seen }}}}{_go(self.answer_end)}{system}{{{{ else }}}}{_go(self.start)}"
            "{{ end }}{{ .Content }}{{ $seen = true }}"
            f'{{{{ else if eq .Role "assistant" }}}}{_go(self.answer_start)}{{{{ .Content }}}}'
            f"{{{{ end }}}}{{{{ end }}}}{_go(self.end)}"
        )


def _go(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


def turns_of(tokenizer: Tokenizer) -> Turns | None:
    """None where the template does more than write the same texts around every turn."""
    try:
        start, end = _around(tokenizer, [("user", USER)])
        first, answer_start, answer_end, last = _around(
            tokenizer, [("user", USER), ("assistant", ANSWER), ("user", LAST)]
        )
    except (InputError, ValueError):
        return None
    try:
        system_start, system_end, after = _around(tokenizer, [("system", SYSTEM), ("user", USER)])
    except (InputError, ValueError):
        system_start, system_end, after = None, "", end
    turns = Turns(start, system_start, system_end, answer_start, answer_end, end)
    same = (first, last, after) == (start, end, end)
    return turns if same and _is_reproduced(turns, tokenizer) else None


def _around(tokenizer: Tokenizer, turns: list[tuple[str, str]]) -> list[str]:
    """The texts before, between and after those of a conversation, each of which is there once."""
    rest, found = tokenizer.render([{"role": role, "content": text} for role, text in turns]), []
    for _, text in turns:
        before, rest = rest.split(text)
        found.append(before)
    return [*found, rest]


def _is_reproduced(turns: Turns, tokenizer: Tokenizer) -> bool:
    texts = ("Good day.", "And to you!", "How are you?", "Well, thanks.", "Bye, then.")
    roles = ("user", "assistant")
    talk: Messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    opening: Messages = (
        [{"role": "system", "content": "Be brief."}] if turns.system_start is not None else []
    )
    return all(
        turns.written(messages) == tokenizer.render(messages)
        for messages in (talk[:1], talk[:3], talk, [*opening, *talk])
    )


def modelfile(
    gguf_name: str, tokenizer: Tokenizer, stops: list[str], temperature: float, context: int
) -> tuple[str, str]:
    """The file's text, and a warning where the template is left to Ollama's own guess, or ""."""
    turns, lines, warning = turns_of(tokenizer), [f"FROM ./{gguf_name}"], ""
    template = turns.in_go() if turns else '"""'
    if tokenizer.add_bos and tokenizer.bos and turns:
        # Ollama puts one in front by itself.
        template = template.replace(tokenizer.bos, "")
    if '"""' in template:
        warning = (
            "the chat template cannot be said in Ollama's language, so the Modelfile leaves it out:"
            " compare an answer with sample.py's before you rely on it"
        )
    else:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    sampling = {"temperature": temperature, "top_p": 1, "top_k": 0, "min_p": 0, "repeat_penalty": 1}
    lines += [f"PARAMETER {key} {value}" for key, value in sampling.items()]
    return "\n".join([*lines, f"PARAMETER num_ctx {context}", ""]), warning


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
