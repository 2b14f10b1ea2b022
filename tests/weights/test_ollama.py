"""Ollama's names for GGUF files, and its Modelfile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.gguf_files import GgufBytes
from helpers.models import CHAT_TEMPLATE
from helpers.refusals import refusal
from helpers.toys import byte_tokenizer

from minialign.weights.find import find_checkpoint
from minialign.weights.load import load
from minialign.weights.modelfile import modelfile, turns_of

DIGEST = "sha256:" + "ab" * 32
MODEL = "application/vnd.ollama.image.model"


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with an empty place for manifests."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    (tmp_path / "blobs").mkdir()
    return tmp_path


def manifest(folder: Path, path: str, layers: object) -> Path:
    file = folder / "manifests" / path
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"layers": layers}))
    return file


LAYERS = [
    {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64},
    {"mediaType": MODEL, "digest": DIGEST},
]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("toy", "registry.ollama.ai/library/toy/latest"),
        ("toy:1b-q4_0", "registry.ollama.ai/library/toy/1b-q4_0"),
        ("kim/toy", "registry.ollama.ai/kim/toy/latest"),
        ("localhost:5000/kim/toy:2", "localhost:5000/kim/toy/2"),
    ],
)
def test_a_name_is_the_file_of_weights_behind_it(ollama: Path, name: str, path: str) -> None:
    manifest(ollama, path, LAYERS)
    blob = GgufBytes().write(ollama / "blobs" / DIGEST.replace(":", "-"))
    assert find_checkpoint(f"ollama:{name}") == blob
    pytest.importorskip("gguf")
    model, _ = load(f"ollama:{name}", dtype="float32")
    assert model.name == str(blob)


@pytest.mark.parametrize("name", ["", "../toy", "toy:../../x", "a/b/c/d", "toy:", "no space"])
def test_what_is_no_name_is_refused(ollama: Path, name: str) -> None:
    assert "not a model's name" in refusal(lambda: find_checkpoint(f"ollama:{name}"))


def test_what_is_missing_is_named(ollama: Path) -> None:
    assert "ollama pull toy" in refusal(lambda: find_checkpoint("ollama:toy"))
    manifest(ollama, "registry.ollama.ai/library/toy/latest", LAYERS)
    assert DIGEST[7:] in refusal(lambda: find_checkpoint("ollama:toy"))


@pytest.mark.parametrize(
    "layers", [[], None, "x", [1], [{"mediaType": MODEL, "digest": "../../etc/passwd"}]]
)
def test_a_strange_manifest_is_refused(ollama: Path, layers: object) -> None:
    manifest(ollama, "registry.ollama.ai/library/toy/latest", layers)
    assert "no single file" in refusal(lambda: find_checkpoint("ollama:toy"))


# ---- the Modelfile ----

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}[sys]Be kind.[/sys]{% endif %}{% for m in messages %}"
    "[{{ m.role }}]{{ m.content | trim }}[/{{ m.role }}]{% endfor %}[assistant]"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
TEMPLATES = {
    "ChatML": CHAT_TEMPLATE,
    "a default system prompt": DEFAULT_SYSTEM,
    "no system": NO_SYSTEM,
    "braces": "{% for m in messages %}{{ '{{' }}{{ m.content }}{% endfor %}",
}


def in_go(template: str, messages: list[dict[str, str]], system: str) -> str:
    """Runs the one shape of Go template that is written: as text/template would."""
    literal = {'{{ "{{" }}': "\0"}
    for old, new in literal.items():
        template = template.replace(old, new)
    shape = re.fullmatch(
        r"\{\{ \$seen := false \}\}\{\{ range \.Messages \}\}\{\{ if eq \.Role \"user\" \}\}"
        r"\{\{ if \$seen \}\}(?P<next>.*?)"
        r"(\{\{ else if \$\.System \}\}(?P<open>.*?)\{\{ \$\.System \}\}(?P<close>.*?))?"
        r"\{\{ else \}\}(?P<start>.*?)\{\{ end \}\}\{\{ \.Content \}\}\{\{ \$seen = true \}\}"
        r"\{\{ else if eq \.Role \"assistant\" \}\}(?P<answer>.*?)\{\{ \.Content \}\}"
        r"\{\{ end \}\}\{\{ end \}\}(?P<end>.*)",
        template,
        re.S,
    )
    assert shape, template
    part, text, seen = shape.groupdict(default=""), "", False
    for message in messages:
        if message["role"] == "user":
            has_system = system and shape["open"] is not None
            first = f"{part['open']}{system}{part['close']}" if has_system else part["start"]
            text += (part["next"] if seen else first) + message["content"]
            seen = True
        elif message["role"] == "assistant":
            text += part["answer"] + message["content"]
    return (text + part["end"]).replace("\0", "{{")


TALK = [
    {"role": "user", "content": "Hi, you"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_template_says_what_the_checkpoints_own_says(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    text, warning = modelfile("model.gguf", tokenizer, ["</s>"], 0.7, 512)
    assert warning == ""
    written = re.search(r'TEMPLATE """(.*?)"""', text, re.S)
    assert written
    for talk in (TALK[:1], TALK):
        assert in_go(written[1], talk, "") == tokenizer.render(talk)
    if turns_of(tokenizer).system_start is not None:
        system = [{"role": "system", "content": "Be brief."}]
        assert in_go(written[1], TALK, "Be brief.") == tokenizer.render([*system, *TALK])
    else:
        assert template == NO_SYSTEM


def test_the_one_bos_is_left_to_ollama() -> None:
    """It puts one in front itself where the GGUF file says so."""
    template = "{{ bos_token }}" + CHAT_TEMPLATE
    text, _ = modelfile("model.gguf", byte_tokenizer(template, add_bos=True), [], 0.7, 512)
    assert "<s>" not in text
    text, _ = modelfile("model.gguf", byte_tokenizer(template), [], 0.7, 512)
    assert "<s>" in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        '{% for m in messages %}{{ m.content }}"""{% endfor %}',
    ],
    ids=["numbers the turns", "shouts", "three quotes"],
)
def test_a_template_that_does_more_is_left_out_with_a_warning(template: str) -> None:
    text, warning = modelfile("model.gguf", byte_tokenizer(template), ["</s>"], 0.7, 512)
    assert "TEMPLATE" not in text and "sample.py" in warning


# https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx: an instruction a line, a value in
# quotes or triple quotes, and these parameters among others.
INSTRUCTION = re.compile(
    r'(FROM|TEMPLATE|PARAMETER) ((?:stop )?"""(?:.*?)"""|[^\n"]*(?:"[^"\n]*")?)\n', re.S
)
PARAMETERS = {
    *("num_ctx", "repeat_penalty", "temperature", "stop", "top_k", "top_p", "min_p", "seed"),
}


def test_the_modelfile_follows_its_grammar() -> None:
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    text, _ = modelfile("model.gguf", tokenizer, ["</s>", '<"x">'], 0.3, 512)
    found = INSTRUCTION.findall(text)
    assert "".join(f"{name} {value}\n" for name, value in found) == text
    assert [name for name, _ in found[:2]] == ["FROM", "TEMPLATE"]
    parameters = [value.split(" ", 1) for name, value in found if name == "PARAMETER"]
    assert {name for name, _ in parameters} <= PARAMETERS
    assert ["stop", '"</s>"'] in parameters and ["stop", '"""<"x">"""'] in parameters
    assert ["temperature", "0.3"] in parameters and ["num_ctx", "512"] in parameters
