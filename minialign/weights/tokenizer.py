"""Text to token ids and back, by the checkpoint's own tokenizer.json and chat template.

Three rules hold everywhere, in SFT, sampling and scoring alike:

* Prompt and completion are encoded as separate segments. Encoding their joined text could merge
  across the boundary, and the model would be trained on other ids than it is sampled with.
* There is exactly one BOS, at the front of the prompt, whoever adds it: the template, the
  tokenizer, or nobody.
* A completion ends as the template ends an assistant's turn, by one token, or else in EOS: a token
  like any other. Padding does not exist (attention.py), so no id is ever masked.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import tokenizers

from minialign.data.files import read_json, read_text
from minialign.data.records import Messages
from minialign.errors import InputError
from minialign.weights.gguf_header import read_header
from minialign.weights.gguf_tokenizer import read_tokenizer
from minialign.weights.templates import ChatTemplate

PROBE = "7Qx"  # an answer that no template has in it, nor changes
QUESTION: Messages = [{"role": "user", "content": "a"}]


class Tokenizer:
    """Use `Tokenizer.from_folder`. `bos_id` and `template` are None where there is none.

    `eos_id` is what ends a completion: where the template ends an assistant's turn by another token
    than EOS, that one. `stop_ids` has both.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos: str,
        bos: str | None = None,
        template: str | None = None,
        add_bos: bool = False,
    ) -> None:
        self.backend = backend
        self.backend.no_padding()
        self.backend.no_truncation()
        self.eos, self.bos = eos, bos
        # What a template takes for today: a run that goes on tomorrow keeps it.
        self.today = datetime.datetime.now()
        self.bos_id = self._special_id(bos) if bos else None
        self.template = template
        self._known: int | None = None
        adds_bos = self.backend.encode("a", add_special_tokens=True).ids[:1] == [self.bos_id]
        self.add_bos = self.bos_id is not None and (add_bos or adds_bos)

    @property
    def template(self) -> str | None:
        return None if self._chat is None else self._chat.source

    @template.setter
    def template(self, source: str | None) -> None:
        self._chat = None if source is None else ChatTemplate(source, self.bos, self.eos)
        self._opening, end = self._probe()
        own = self._special_id(self.eos)
        self.eos_id = own if end is None else end
        self.stop_ids = tuple(dict.fromkeys((self.eos_id, own)))

    def fit(self, vocab_size: int) -> None:
        """Tells how many ids the model knows; texts that need others are refused from now on.

        Some tokenizers add a few control tokens that their model of text has no use for. Raises
        InputError where it is more than these.
        """
        words = self.backend.get_vocab_size(with_added_tokens=False)
        if words > vocab_size:
            raise InputError(
                f"tokenizer.json has {words:,} words, the model knows {vocab_size:,}:"
                " it is another model's"
            )
        self._known = vocab_size

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        if self._known is not None and max(ids, default=0) >= self._known:
            unknown = next(i for i in ids if i >= self._known)
            raise InputError(f"the model does not know the token {self.token(unknown)[:60]!r}")
        return ids

    def _special_id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise InputError(
                f"tokenizer_config.json names {token[:60]!r}, which tokenizer.json does not have"
            )
        return found

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Reads tokenizer.json, tokenizer_config.json and, if there, chat_template.jinja.

        A GGUF file holds all three.

        Raises InputError where a file is missing or broken, or names no end token.
        """
        folder = Path(folder)
        if folder.is_file():
            backend, config = read_tokenizer(read_header(folder))
            return cls._of(backend, folder, config, config["chat_template"])
        config = read_json(folder / "tokenizer_config.json")
        file = folder / "tokenizer.json"
        if not file.exists():
            raise InputError(
                f"{file}: no such file: minialign needs the checkpoint's fast tokenizer"
            )
        text = read_text(file)
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except BaseException as error:  # the library raises bare Exception, and Rust's panics
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{file}: cannot be read: {reason}") from None
        named = folder / "tokenizer_config.json"
        return cls._of(backend, named, config, _chat_template(folder, config))

    @classmethod
    def _of(
        cls,
        backend: tokenizers.Tokenizer,
        named: Path,
        config: dict[str, Any],
        template: str | None,
    ) -> Tokenizer:
        eos = _token_text(config, "eos_token", named)
        if eos is None:
            raise InputError(f"{named}: eos_token is missing: no completion could end")
        bos = _token_text(config, "bos_token", named)
        return cls(backend, eos, bos, template, bool(config.get("add_bos_token", False)))

    def _probe(self) -> tuple[str, int | None]:
        """How the template frames an answer: what stands before it, and the token that ends it.

        Before it, behind the generation prompt, stands the rest of a thought where the template
        begins one. Nothing is known of a template that refuses a question and an answer.
        """
        if self._chat is None:
            return "", None
        try:
            prompt = self._chat.render(QUESTION).rstrip(" ")
            whole = self._chat.render([*QUESTION, {"role": "assistant", "content": PROBE}], False)
        except InputError:
            return "", None
        before, found, after = whole.rpartition(PROBE)
        if not found:
            return "", None
        opening = before[len(prompt) :] if before.startswith(prompt) else ""
        return opening if opening.strip() else "", self._first_control_token(after)

    def _first_control_token(self, text: str) -> int | None:
        """The id of the control token that a text begins with, spaces and line breaks aside."""
        text = text.lstrip()
        control = [a for a in self.backend.get_added_tokens_decoder().items() if a[1].special]
        found = [(len(token.content), i) for i, token in control if text.startswith(token.content)]
        return max(found)[1] if found else None

    def render(self, messages: Messages) -> str:
        """The prompt as text, up to the point where the assistant's answer begins.

        That is the template's generation prompt, without a thought: one that the template leaves
        open is closed as the template closes it. Raises InputError if the template refuses.
        """
        if self._chat is None:
            return "\n\n".join(message["content"] for message in messages).rstrip(" ")
        # A trailing space would be a token of its own, where the completion's first word brings its
        # own space.
        return self._chat.render(messages, today=self.today).rstrip(" ") + self._opening

    def encode_prompt(self, messages_or_text: Messages | str) -> list[int]:
        """Token ids up to where the assistant begins; a text is one message of the user."""
        messages = messages_or_text
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        self.backend.encode_special_tokens = (
            False  # the template's own control tokens are meant as such
        )
        ids = self._ids(self.render(messages))
        if self.bos_id is not None:
            while ids[:2] == [self.bos_id, self.bos_id]:
                ids = ids[1:]
            if self.add_bos and ids[:1] != [self.bos_id]:
                ids = [self.bos_id, *ids]
        return ids

    def encode_completion(self, text: str) -> list[int]:
        """Token ids ending in `eos_id`.

        Control tokens written out in the text are text: nobody ends a turn by quoting.
        """
        self.backend.encode_special_tokens = True
        return [*self._ids(text), self.eos_id]

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """Text for people and files, without control tokens, otherwise byte for byte."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def token(self, *token_ids: int) -> str:
        """How a token looks, or several that make one character, for `--inspect`."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=False))


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return read_text(file)
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise InputError(f"{folder / 'tokenizer_config.json'}: chat_template is not a text")
    return template


def _token_text(config: dict[str, Any], name: str, file: Path) -> str | None:
    token = config.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(token, str):
        raise InputError(f"{file}: {name} is not a text")
    return token
