"""Text to token ids and back, by the checkpoint's own tokenizer.json and chat template.

Three rules hold everywhere, in SFT, sampling and scoring alike:

* Prompt and completion are encoded as separate segments. Encoding their joined text could merge
  across the boundary, and the model would be trained on other ids than it is sampled with.
* There is exactly one BOS, at the front of the prompt, whoever adds it: the template, the
  tokenizer, or nobody.
* A completion ends in EOS, a token like any other. Padding does not exist (attention.py), so no id
  is ever masked.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minialign.data.files import read_json
from minialign.data.records import Messages
from minialign.errors import InputError
from minialign.weights.gguf_header import read_header
from minialign.weights.gguf_tokenizer import read_tokenizer


class Tokenizer:
    """Use `Tokenizer.from_folder`. `bos_id` and `template` are None where there is none."""

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
        self.eos, self.bos, self.template = eos, bos, template
        self.eos_id = self._special_id(eos)
        self.bos_id = self._special_id(bos) if bos else None
        adds_bos = self.backend.encode("a", add_special_tokens=True).ids[0] == self.bos_id
        self.add_bos = self.bos_id is not None and (add_bos or adds_bos)

    def _special_id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise InputError(
                f"tokenizer_config.json names {token!r}, which tokenizer.json does not have"
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
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{file}: cannot be read: {error}") from None
        source = folder / "tokenizer_config.json"
        return cls._of(backend, source, config, _chat_template(folder, config))

    @classmethod
    def _of(
        cls,
        backend: tokenizers.Tokenizer,
        source: Path,
        config: dict[str, Any],
        template: str | None,
    ) -> Tokenizer:
        eos = _token_text(config.get("eos_token"))
        if eos is None:
            raise InputError(f"{source}: eos_token is missing: no completion could end")
        bos = _token_text(config.get("bos_token"))
        return cls(backend, eos, bos, template, bool(config.get("add_bos_token", False)))

    def render(self, messages: Messages) -> str:
        """The prompt as text, up to the point where the assistant begins.

        Raises InputError if the template refuses.
        """
        if self.template is None:
            return "\n\n".join(message["content"] for message in messages).rstrip(" ")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, **options
        )
        environment.globals["raise_exception"] = _raise_template_error
        environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(
            layout
        )
        try:
            text = environment.from_string(self.template).render(
                messages=messages,
                tools=None,  # templates may ask whether these are none, as transformers sets them
                documents=None,
                add_generation_prompt=True,
                bos_token=self.bos or "",
                eos_token=self.eos,
            )
        except Exception as error:  # a template is a program: it may fail in any way
            reason = " ".join(str(error).split())
            raise InputError(
                f"the model's chat template refuses these messages: {reason}"
            ) from None
        # A trailing space would be a token of its own, where the completion's first word brings its
        # own space.
        return text.rstrip(" ")

    def encode_prompt(self, messages_or_text: Messages | str) -> list[int]:
        """Token ids up to where the assistant begins; a text is one message of the user."""
        messages = messages_or_text
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        self.backend.encode_special_tokens = (
            False  # the template's own control tokens are meant as such
        )
        ids: list[int] = self.backend.encode(self.render(messages), add_special_tokens=False).ids
        if self.bos_id is not None:
            while ids[:2] == [self.bos_id, self.bos_id]:
                ids = ids[1:]
            if self.add_bos and ids[:1] != [self.bos_id]:
                ids = [self.bos_id, *ids]
        return ids

    def encode_completion(self, text: str) -> list[int]:
        """Token ids ending in EOS.

        Control tokens written out in the text are text: nobody ends a turn by quoting.
        """
        self.backend.encode_special_tokens = True
        return [*self.backend.encode(text, add_special_tokens=False).ids, self.eos_id]

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """Text for people and files, without control tokens, otherwise byte for byte."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """How one token looks, for `--inspect`."""
        return str(self.backend.decode([token_id], skip_special_tokens=False))


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _token_text(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)
