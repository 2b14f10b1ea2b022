"""Text to ids: separate segments, one BOS, one EOS, templates, and Mistral's own tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers.models import CHAT_TEMPLATE, make_byte_level_backend, write_tokenizer
from helpers.refusals import refusal
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from minialign.data.records import Demonstration
from minialign.policy.encode import encode_demonstration
from minialign.weights.tokenizer import Tokenizer


@cache
def byte_level() -> Tokenizer:
    return Tokenizer(
        make_byte_level_backend(), "<|im_end|>", "<|im_start|>", template=CHAT_TEMPLATE
    )


def sentencepiece_like(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Backend:
    """What a converted SentencePiece model looks like: a space is the letter U+2581, a text starts
    with one, and unknown characters fall back to bytes.
    """
    model = models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def metaspace_backend() -> Backend:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abcdefghijklmnopqrstuvwxyz[]/INST", "\u2581a", "\u2581th", "th", "he"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("t", "h"), ("\u2581", "th"), ("\u2581", "a"), ("h", "e")]
    backend = sentencepiece_like(vocabulary, merges)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


@cache
def metaspace() -> Tokenizer:
    template = "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]"
    return Tokenizer(metaspace_backend(), "</s>", "<s>", template=template)


def from_folder(folder: Path, backend: Backend | None = None, **config: Any) -> Tokenizer:
    write_tokenizer(folder, backend or make_byte_level_backend(), **config)
    return Tokenizer.from_folder(folder)


# ---- two segments ----


@pytest.mark.parametrize("tokenizer", [byte_level, metaspace], ids=["byte-level", "metaspace"])
def test_prompt_and_completion_never_merge_across_their_boundary(
    tokenizer: Callable[[], Tokenizer],
) -> None:
    plain = Tokenizer(tokenizer().backend, tokenizer().eos)
    prompt, completion = plain.encode_prompt("a t"), plain.encode_completion("he a")[:-1]
    joined = plain.encode_completion("a the a")[:-1]
    assert prompt + completion != joined  # or this text could not tell
    assert prompt == plain.encode_completion("a t")[:-1]
    assert plain.decode(prompt) + plain.decode(completion) == plain.decode(joined)


def test_a_demonstration_is_its_two_segments_and_a_cut_one_loses_its_end_token() -> None:
    tokenizer = byte_level()
    demonstration = Demonstration(
        [{"role": "user", "content": "Write."}], "\nDear Sam", "demos.jsonl, line 1"
    )
    prompt, completion = (
        tokenizer.encode_prompt("Write."),
        tokenizer.encode_completion("\nDear Sam"),
    )
    sequence, warning = encode_demonstration(demonstration, tokenizer, 256)
    assert (list(sequence.prompt_ids), list(sequence.completion_ids)) == (prompt, completion)
    assert warning is None and completion[-1] == tokenizer.eos_id
    cut, warning = encode_demonstration(demonstration, tokenizer, len(prompt) + 3)
    assert list(cut.completion_ids) == completion[:3] and "line 1" in str(warning)
    assert "line 1" in refusal(lambda: encode_demonstration(demonstration, tokenizer, len(prompt)))


# ---- BOS and EOS ----


@pytest.mark.parametrize("by_flag", [False, True], ids=["", "add_bos_token"])
@pytest.mark.parametrize("by_processor", [False, True], ids=["", "post-processor"])
@pytest.mark.parametrize("by_template", [False, True], ids=["", "template"])
def test_there_is_exactly_one_bos_if_anybody_adds_it_and_none_otherwise(
    tmp_path: Path, by_template: bool, by_processor: bool, by_flag: bool
) -> None:
    backend = metaspace_backend()
    if by_processor:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    bos = "{{ bos_token }}" if by_template else ""
    tokenizer = from_folder(
        tmp_path,
        backend,
        bos_token="<s>",
        eos_token={"content": "</s>", "lstrip": False},
        add_bos_token=by_flag,
        chat_template=bos + "[INST] {{ messages[0]['content'] }} [/INST]",
    )
    expected = int(by_template or by_processor or by_flag)
    ids = tokenizer.encode_prompt("the a")
    assert ids.count(tokenizer.bos_id) == expected and ids[:expected] == [1] * expected
    completion = tokenizer.encode_completion("the a")
    assert completion.count(tokenizer.bos_id) == 0
    assert completion.count(tokenizer.eos_id) == 1 and completion[-1] == 2


def test_a_template_that_writes_bos_twice_still_gives_one(tmp_path: Path) -> None:
    template = "{{ bos_token }}<s>{{ messages[0].content }}"
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    tokenizer = from_folder(tmp_path, metaspace_backend(), **config)
    ids = tokenizer.encode_prompt("the")
    assert ids.count(1) == 1 and ids[0] == 1 and len(ids) > 1


def test_a_bos_that_opens_every_turn_is_not_taken_for_a_second_one() -> None:
    """SmolLM2's template opens each turn with the token that its config calls BOS."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
    ]
    tokenizer = byte_level()
    ids = tokenizer.encode_prompt(messages)
    assert ids.count(1) == 3 and ids[0] == 1
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == tokenizer.render(messages)


def test_a_tokenizer_that_would_pad_or_cut_does_neither(tmp_path: Path) -> None:
    backend = make_byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=300)
    tokenizer = from_folder(tmp_path, backend, eos_token="<|im_end|>")
    text = "Write an e-mail to the team."
    assert tokenizer.encode_completion(text) == byte_level().encode_completion(text)
    assert tokenizer.encode_prompt(text) == byte_level().encode_completion(text)[:-1]


# ---- control tokens in a text ----


@pytest.mark.parametrize("tokenizer", [byte_level, metaspace], ids=["byte-level", "metaspace"])
def test_control_tokens_quoted_in_a_completion_are_text(
    tokenizer: Callable[[], Tokenizer],
) -> None:
    own = tokenizer()
    quoting = f"a {own.eos} the {own.bos}the"
    ids = own.encode_completion(quoting)
    assert ids.count(own.eos_id) == 1 and own.bos_id not in ids
    assert own.decode(ids) == quoting  # control tokens are hidden, the quoted ones are not
    prompt = own.encode_prompt("a")  # and quoting has no effect on what comes after
    assert prompt.count(own.bos_id) == own.render([{"role": "user", "content": "a"}]).count(
        str(own.bos)
    )


# ---- templates ----


def prompt_text(template: str, tmp_path: Path, **config: Any) -> str:
    tokenizer = from_folder(tmp_path, eos_token="<|im_end|>", chat_template=template, **config)
    return tokenizer.render([{"role": "user", "content": "Hello."}])


def test_a_trailing_space_of_the_template_is_left_to_the_completion(tmp_path: Path) -> None:
    assert prompt_text("{{ messages[0].content }} ASSISTANT: ", tmp_path) == "Hello. ASSISTANT:"
    assert prompt_text("{{ messages[0].content }}\n", tmp_path / "b") == "Hello."  # jinja's own
    assert prompt_text("{{ messages[0].content + '\n' }}", tmp_path / "c") == "Hello.\n"


def test_lines_of_a_template_that_hold_only_a_block_leave_nothing(tmp_path: Path) -> None:
    template = "{% for m in messages %}\n  {% if m %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}"
    assert prompt_text(template, tmp_path) == "Hello.\n"


def test_without_a_template_the_prompt_is_the_text_itself(tmp_path: Path) -> None:
    tokenizer = from_folder(tmp_path, eos_token="<|im_end|>")
    assert tokenizer.render([{"role": "user", "content": "Dear "}]) == "Dear"
    assert tokenizer.bos_id is None


def test_a_chat_template_file_goes_before_the_config(tmp_path: Path) -> None:
    tmp_path.joinpath("chat_template.jinja").write_text("żółw {{ messages[0].content }}", "utf-8")
    assert prompt_text("config", tmp_path) == "żółw Hello."


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert prompt_text(named, tmp_path) == "plain"  # type: ignore[arg-type]


def test_templates_know_what_transformers_gives_them(tmp_path: Path) -> None:
    template = """
        {%- for m in messages %}
            {%- if loop.index > 1 %}{% break %}{% endif %}
            {{- m.role | tojson }}{{ {"ö": "<"} | tojson }}
        {%- endfor %}
        {{- bos_token ~ eos_token ~ add_generation_prompt }}
        {{- strftime_now("%Y") | length }}
        {{- " tools" if tools is not none }}{{ " documents" if documents is not none }}
    """
    expected = '"user"{"ö": "<"}<|im_start|><|im_end|>True4'
    assert prompt_text(template.strip(), tmp_path, bos_token="<|im_start|>") == expected


BROKEN = {
    "raise_exception": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "syntax": ("{% for m in %}", ""),
    "undefined": ("{{ messages[0].tool.name }}", "tool"),
    "types": ("{{ messages[0].content + 1 }}", ""),
    "division": ("{{ 1 // 0 }}", ""),
    "two lines": ("{{ raise_exception('one\ntwo') }}", "one"),
}


@pytest.mark.parametrize(("template", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_template_that_fails_says_so_in_a_line(
    template: str, reason: str, tmp_path: Path
) -> None:
    message = refusal(lambda: prompt_text(template, tmp_path))
    assert "chat template" in message and reason in message


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ strftime_now.__globals__['datetime'] }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
        "{{ messages[0].update(content='x') }}",
        "{{ range(100000000) | list }}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(template: str, tmp_path: Path) -> None:
    assert "chat template" in refusal(lambda: prompt_text(template, tmp_path))


# ---- files ----


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    assert "tokenizer_config.json" in refusal(lambda: Tokenizer.from_folder(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json" in refusal(lambda: Tokenizer.from_folder(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json" in refusal(lambda: Tokenizer.from_folder(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert "tokenizer.json" in refusal(lambda: Tokenizer.from_folder(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refusal(lambda: Tokenizer.from_folder(tmp_path))


@pytest.mark.parametrize("config", [{}, {"eos_token": None}, {"eos_token": "</end>"}])
def test_without_a_known_end_token_nothing_loads(tmp_path: Path, config: dict[str, Any]) -> None:
    message = refusal(lambda: from_folder(tmp_path, **config))
    assert "eos_token" in message or "'</end>'" in message


# ---- round trips ----

texts = st.text(st.characters(codec="utf-8"), max_size=40)
quoting_texts = st.lists(
    st.one_of(texts, st.sampled_from(["<|im_end|>", "<|im_start|>", "</s>", "<s>", "\n\n", "  "])),
    max_size=6,
).map("".join)


@given(quoting_texts)
def test_any_text_comes_back_from_a_byte_level_tokenizer(text: str) -> None:
    ids = byte_level().encode_completion(text)
    assert byte_level().decode(ids) == text
    assert [token for token in ids if token < 3] == [byte_level().eos_id]


@given(quoting_texts.filter(lambda t: not t.startswith((" ", "\u2581")) and "\u2581" not in t))
def test_any_text_but_an_outer_space_comes_back_from_a_sentencepiece_like_tokenizer(
    text: str,
) -> None:
    ids = metaspace().encode_completion(text)
    assert metaspace().decode(ids) == text
    assert [token for token in ids if token < 3] == [metaspace().eos_id]


# Bytes that SmolLM2's vocabulary lacks, so that it drops them: unassigned planes, control codes.
DEFAULT_LACKS = {0xF1, 0xF2, 0x04, 0x06, 0x13, 0x14, 0x16, 0x1D}


@pytest.mark.default_model
@settings(max_examples=200)
@given(text=quoting_texts)
def test_any_text_comes_back_from_the_default_tokenizer(
    text: str, default_tokenizer: Tokenizer
) -> None:
    assume(DEFAULT_LACKS.isdisjoint(text.encode()))
    ids = default_tokenizer.encode_completion(text)
    assert default_tokenizer.decode(ids) == text
    assert ids.count(default_tokenizer.eos_id) == 1 and ids[-1] == default_tokenizer.eos_id


@pytest.fixture(scope="module")
def default_tokenizer(default_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_folder(default_checkpoint)


# ---- Mistral's own tokenizers, as mistral-common uses them ----

MISTRAL_FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "tekken": "tekken_240911.json",
}
MISTRAL_TEXTS = [
    "Write an email to your landlord about the broken heater.",
    "[",
    "[x] a list, [y] another ] and /INST",
    "\nA leading newline\n\nand two inside",
    "🦜 parrots, żółw, 東京, and\ta tab",
    "two  spaces and   three",
    "<s> and </s> are only quoted here",
    "x = y[0]  # code\n    indented\n",
]


def converted(file: Path) -> Backend:
    """The file as a tokenizer.json: what the hub's repositories of these models hold."""
    if file.suffix == ".json":
        integration = pytest.importorskip("transformers.integrations.mistral.tokenizer")
        return integration.MistralConverter(str(file)).converted()
    model = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(file))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    splits = [(p[:i], p[i:]) for p in pieces for i in range(1, len(p))]
    merges = [(a, b) for a, b in splits if a in vocabulary and b in vocabulary]
    merges.sort(  # as transformers' converter does
        key=lambda pair: (model.get_score(vocabulary["".join(pair)]), *map(len, pair)),
        reverse=True,
    )
    backend = sentencepiece_like(vocabulary, merges)
    control = [piece for i, piece in enumerate(pieces) if model.is_control(i) or i < 3]
    backend.add_special_tokens([AddedToken(piece, normalized=False) for piece in control])
    return backend


@pytest.fixture(scope="module", params=MISTRAL_FILES.values(), ids=MISTRAL_FILES.keys())
def mistral(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    """(ours, mistral-common's) of one tokenizer file that mistral-common ships."""
    common = pytest.importorskip("mistral_common.tokens.tokenizers.mistral")
    templates = pytest.importorskip("mistral_common.integrations.chat_templates.chat_templates")
    file = Path(common.__file__).parents[2] / "data" / request.param
    if not file.exists():
        pytest.skip(f"mistral-common ships no {file.name}")
    backend = converted(file)
    template = templates.convert_tokenizer_to_chat_template(file)
    return Tokenizer(backend, "</s>", "<s>", template), common.MistralTokenizer.from_file(str(file))


def test_mistral_prompts_have_the_ids_that_mistral_common_gives_them(
    mistral: tuple[Tokenizer, Any],
) -> None:
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    ours, theirs = mistral
    for text in MISTRAL_TEXTS:
        if "<s>" in text:  # in a prompt, transformers and we take control tokens at their word
            continue
        chat = [UserMessage(content=text)]
        expected = theirs.encode_chat_completion(ChatCompletionRequest(messages=chat)).tokens
        assert ours.encode_prompt(text) == expected, text
        assert expected[0] == ours.bos_id and expected.count(ours.bos_id) == 1
    chat = [
        UserMessage(content="One?"),
        AssistantMessage(content="Yes, one."),
        UserMessage(content="Two?"),
    ]
    expected = theirs.encode_chat_completion(ChatCompletionRequest(messages=chat)).tokens
    messages = [{"role": str(m.role), "content": str(m.content)} for m in chat]
    assert ours.encode_prompt(messages) == expected


def test_mistral_completions_have_the_ids_that_mistral_common_gives_them(
    mistral: tuple[Tokenizer, Any],
) -> None:
    from mistral_common.protocol.instruct.messages import AssistantMessage

    ours, theirs = mistral
    for text in MISTRAL_TEXTS:
        message = AssistantMessage(content=text)
        expected = theirs.instruct_tokenizer.encode_assistant_message(message, False)
        assert ours.encode_completion(text) == expected, text
        assert ours.decode(expected) == text
