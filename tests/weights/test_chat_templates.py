"""Chat templates, a toy for each family, with transformers as the judge; and the traps in them.

Three properties: the prompt is transformers' generation prompt; prompt and completion are the
template's own rendering of the assistant's turn, end of turn included; texts come back whole.
The toys have the frame, control tokens and quirks of the templates that the families' models ship.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.models import CORPUS
from helpers.refusals import refusal
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from minialign.weights.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")


class Toy(NamedTuple):
    template: str
    control: str  # control tokens, the first of which is EOS, and the last the end of a turn
    bos: str | None = None


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN2 = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "{% endif %}" + CHATML
)
# The last answer has an empty thought, earlier ones none; the prompt has it when asked.
QWEN3 = """{%- set ns = namespace(last=0) %}
{%- for m in messages if m.role == 'user' %}{% set ns.last = messages.index(m) %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thought = '<think>\\n\\n</think>\\n\\n' if loop.index0 > ns.last else '' %}
        {{- '<|im_start|>assistant\\n' + thought + content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
# As QWEN3, but the prompt always begins a thought.
THINKING = QWEN3.replace(
    """    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}""",
    "    {{- '<think>\\n' }}",
)
SMOLLM3 = """{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{{- '<|im_start|>system\\nToday: ' ~ strftime_now('%Y') }}
{{- '\\nReasoning: ' ~ ('/think' if enable_thinking else '/no_think') ~ '<|im_end|>\\n' }}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {% generation %}
        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' ~ m.content.lstrip('\\n') }}
        {{- '<|im_end|>\\n' }}
        {% endgeneration %}
    {%- else %}
        {{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' ~ ('' if enable_thinking else '<think>\\n\\n</think>\\n') }}
{%- endif %}"""
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}"
    "{% endif %}"
)
GEMMA = """{{ bos_token }}
{%- set ahead = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
{%- set loop_messages = messages[1:] if ahead else messages %}
{%- for m in loop_messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
    {{- (ahead if loop.first else '') + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GRANITE = (
    "{% if messages[0].role != 'system' %}<|start_of_role|>system<|end_of_role|>Today: "
    "{{ strftime_now('%Y') }}.<|end_of_text|>\n{% endif %}"
    "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}"
    "<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
# The last answer ends in EOS, those before in the end of a turn.
OLMO3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% else %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]{% endif %}{% endfor %}"
)
TURNS = "<|im_start|> <|im_end|>"

TOYS = {
    "llama": Toy(
        LLAMA3, "<|eot_id|> <|start_header_id|> <|end_header_id|> <|bos|> <|eot_id|>", "<|bos|>"
    ),
    "mistral": Toy(MISTRAL, "</s> <s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] </s>", "<s>"),
    "qwen2": Toy(QWEN2, f"<|im_end|> <|endoftext|> {TURNS}"),
    "qwen3": Toy(QWEN3, f"<|im_end|> <|endoftext|> {TURNS}"),
    "qwen3 thinking": Toy(THINKING, f"<|im_end|> <|endoftext|> {TURNS}"),
    "smollm3": Toy(SMOLLM3, f"<|im_end|> {TURNS}"),
    "gemma3_text": Toy(GEMMA, "<eos> <bos> <start_of_turn> <end_of_turn>", "<bos>"),
    "phi3": Toy(PHI3, "<|endoftext|> <|user|> <|assistant|> <|system|> <|end|>"),
    "granite": Toy(GRANITE, "<|end_of_text|> <|start_of_role|> <|end_of_role|> <|end_of_text|>"),
    "olmo3": Toy(OLMO3, f"<|endoftext|> {TURNS} <|endoftext|>"),
    "ministral3": Toy(
        MISTRAL, "</s> <s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] </s>", "<s>"
    ),
}
TEXTS = ["Dear Sam,\n\nthank you.\n\nKim", "a", "żółw 🦜\t<3", "- one\n- two\n\n```\n  x\n```"]


def write(toy: Toy, folder: Path, **config: Any) -> Path:
    control = list(dict.fromkeys(toy.control.split()))
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS], trainer)
    # as Qwen3 has them: tokens of their own, but not control tokens
    backend.add_tokens(["<think>", "</think>"])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": control[0],
        "bos_token": toy.bos,
        "chat_template": toy.template,
        "clean_up_tokenization_spaces": False,
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(params=TOYS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Tokenizer, Any]:
    """A family's name, our tokenizer and transformers'."""
    folder = write(TOYS[request.param], tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return request.param, Tokenizer.from_folder(folder), theirs


def conversations() -> list[list[dict[str, str]]]:
    asked = [{"role": "user", "content": "Write to Sam."}]
    again = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Shorter."}]
    return [asked, asked + again, [{"role": "system", "content": "Be brief."}, *asked]]


def test_the_prompt_is_transformers_generation_prompt(both: tuple[str, Tokenizer, Any]) -> None:
    family, ours, theirs = both
    for messages in conversations():
        options = {"add_generation_prompt": True, "enable_thinking": False}
        text = theirs.apply_chat_template(messages, tokenize=False, **options)
        # a thought that the template begins whatever it is asked is closed
        text += "\n</think>\n\n" if family == "qwen3 thinking" else ""
        assert ours.render(messages) == text
        assert ours.encode_prompt(messages) == theirs(text, add_special_tokens=False)["input_ids"]


def test_prompt_and_completion_are_the_templates_rendering_of_the_assistants_turn(
    both: tuple[str, Tokenizer, Any],
) -> None:
    family, ours, theirs = both
    end = TOYS[family].control.split()[-1]
    for messages in conversations():
        for text in TEXTS:
            turn = {"role": "assistant", "content": text}
            whole = theirs.apply_chat_template(
                [*messages, turn], tokenize=False, enable_thinking=False
            )
            whole = whole[: whole.rindex(text) + len(text) + len(end)]
            assert whole.endswith(text + end)
            ids = ours.encode_prompt(messages) + ours.encode_completion(text)
            assert ids == theirs(whole, add_special_tokens=False)["input_ids"]


def test_texts_come_back_whole(both: tuple[str, Tokenizer, Any]) -> None:
    _, ours, _ = both
    for text in [*TEXTS, " outer spaces \n", "<eos> and <|im_end|> are quoted", ""]:
        assert ours.decode(ours.encode_completion(text)) == text


# ---- named traps ----


def test_a_completion_ends_as_the_template_ends_a_turn_where_that_is_not_eos(
    tmp_path: Path,
) -> None:
    """The model would never stop in chat: hiyouga/LLaMA-Factory#7454, #10834."""
    for family in ("gemma3_text", "phi3"):
        tokenizer = Tokenizer.from_folder(write(TOYS[family], tmp_path / family))
        eos, end = TOYS[family].control.split()[0], TOYS[family].control.split()[-1]
        ids = [tokenizer.backend.token_to_id(token) for token in (end, eos)]
        assert tokenizer.encode_completion("a")[-1] == ids[0] != ids[1]
        assert list(tokenizer.stop_ids) == ids  # both stop a sample


def test_an_empty_thought_belongs_to_the_prompt(tmp_path: Path) -> None:
    """Trained without it, the model answers where a thought is due: huggingface/trl#6361."""
    for family in ("qwen3", "qwen3 thinking", "smollm3"):
        tokenizer = Tokenizer.from_folder(write(TOYS[family], tmp_path / family))
        prompt = tokenizer.render([{"role": "user", "content": "Hi."}])
        assert prompt.rstrip("\n").endswith("<think>\n\n</think>")
        assert "think" not in tokenizer.decode(tokenizer.encode_completion("Hello."))
        earlier = tokenizer.render(conversations()[1])
        assert earlier.count("<think>") == (2 if family == "smollm3" else 1)


def test_thinking_is_switched_off_by_the_templates_own_switch(tmp_path: Path) -> None:
    template = "{{ enable_thinking is defined and not enable_thinking }}"
    tokenizer = Tokenizer.from_folder(write(Toy(template, "<e>"), tmp_path))
    assert tokenizer.render([{"role": "user", "content": "Hi."}]) == "True"


def test_a_template_without_system_turns_says_so(tmp_path: Path) -> None:
    """As those of Mistral v0.1 and Gemma 2 do."""
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    tokenizer = Tokenizer.from_folder(write(Toy(template, "<e>"), tmp_path))
    assert tokenizer.render(conversations()[0]) == "Write to Sam."
    message = refusal(lambda: tokenizer.render(conversations()[2]))
    assert "chat template" in message and "System role not supported" in message


@pytest.mark.parametrize("by_template", [True, False])
@pytest.mark.parametrize("by_flag", [True, False])
def test_bos_is_never_there_twice(by_template: bool, by_flag: bool, tmp_path: Path) -> None:
    """Template and tokenizer both add it: vllm-project/vllm#16976."""
    template = GEMMA if by_template else GEMMA.replace("{{ bos_token }}", "")
    toy = Toy(template, TOYS["gemma3_text"].control, "<bos>")
    tokenizer = Tokenizer.from_folder(write(toy, tmp_path, add_bos_token=by_flag))
    ids = tokenizer.encode_prompt("Hi.")
    assert ids.count(tokenizer.bos_id) == int(by_template or by_flag)


# ---- a template is a stranger's program ----

HOSTILE = {
    "a long text": "{{ 'a' * 3000000000 }}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "doubled": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "added": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}",
    "a filter's width": "{{ 'a' | center(3000000000) }}",
    "a method's width": "{{ 'a'.ljust(3000000000) }}",
    "a format's width": "{{ '%3000000000d' % 1 }}",
    "a format method's width": "{{ '{:3000000000}'.format(1) }}",
    "a format filter's width": "{{ '%3000000000d' | format(1) }}",
    "replaced": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "a large number": "{% set n = namespace(x=9) %}{% for i in range(60) %}"
    "{% set n.x = n.x * n.x %}{% endfor %}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a long list": "{{ (range(99999) | list) * 99999 }}",
    "calls without end": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "calls that double": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "written over and over": "{% set y %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}"
    "{% endset %}",
    "20 MB of source": "a" * 20_000_000,
    "nested too deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_one_line_within_seconds(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minialign.weights.templates.SECONDS", 0.3)
    tokenizer = Tokenizer.from_folder(write(Toy(template, "<e>"), tmp_path))
    began = time.process_time()
    assert "chat template" in refusal(lambda: tokenizer.render(conversations()[0]))
    assert time.process_time() - began < 5
