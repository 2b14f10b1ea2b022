"""train.py on a mailbox in one command, on a toy model; and that fifty secrets come out nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.commands import Outcome, call, evaluate, sample, train
from helpers.files import write_jsonl
from helpers.mails import message, own, write_mbox
from helpers.models import write_checkpoint
from helpers.secrets import SECRETS, SENTENCES
from helpers.workplaces import TINY, TINY_SFT

from minialign.commands import session
from minialign.commands.inspect import system_prompt, texts_of
from minialign.weights.tokenizer import Tokenizer

ON_MAIL = ("--demos", "sent.mbox", "--model", "toy", "--max-length", "220", *TINY)


def brief(number: int) -> str:
    """Short enough for a toy's context, with five secrets."""
    told = " ".join(SENTENCES[5 * number : 5 * number + 5])
    return f"Hi Petrova,\n\n{told}\n\nOnwards own{number},\nMaud"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mail")
    write_checkpoint(folder / "toy", max_position_embeddings=1024)
    mails = [message(brief(n), f"About {SECRETS[n]}") for n in range(10)]
    write_mbox(folder / "sent.mbox", [mail.as_bytes() for mail in mails])
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Outcome:
    return call(train, *ON_MAIL, cwd=place)


# ---- one command ----


def test_one_command_imports_picks_plans_and_trains(trained: Outcome, place: Path) -> None:
    assert trained.code == 0, trained.err
    order = ("sent.mbox: 10 texts of yours", "data/sent.jsonl: 8 to learn from", "model  toy")
    places = [trained.out.index(said) for said in order]
    assert places == sorted(places) and "done in" in trained.out[places[-1] :]
    assert "2 held-out demonstrations: data/sent.jsonl" in trained.out
    assert (place / "runs" / "sent" / "adapter" / "adapter_model.safetensors").exists()


def test_what_was_imported_once_is_taken_as_it_is(trained: Outcome, place: Path) -> None:
    file = place / "data" / "sent.jsonl"
    before = file.read_bytes()
    outcome = call(train, *ON_MAIL, "--inspect", cwd=place)
    assert outcome.code == 0, outcome.err
    assert "data/sent.jsonl: made of sent.mbox before" in outcome.out
    assert file.read_bytes() == before


def test_a_person_who_says_no_gets_no_run(
    trained: Outcome, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = SimpleNamespace(**{**vars(session.sys), "stdin": SimpleNamespace(isatty=lambda: 1)})
    monkeypatch.setattr(session, "sys", terminal)
    monkeypatch.setattr("builtins.input", lambda question: "n" if "train?" in question else "")
    outcome = call(train, *ON_MAIL, "--out", "runs/no", cwd=place)
    assert outcome.code == 2 and "nothing was trained: edit data/sent.jsonl" in outcome.err
    assert not (place / "runs" / "no").exists()


FORMATS = {
    "letter.docx": (b"PK\x03\x04", "a Word document (.docx): save its text as .txt"),
    "mails.jsonl": (b"From a@b.c Fri May  3 10:00:00 2024\n", "a mailbox (mbox), not JSON Lines"),
    "texts.jsonl": (b'{"email": "Hi", "subject": "Buns"}', "minialign import makes demonstrations"),
    "turns.jsonl": (b'{"conversations": [{"from": "x"}]}', '"conversations" must be a list of'),
}


@pytest.mark.parametrize("name", FORMATS)
def test_another_format_is_named_and_what_helps(place: Path, name: str) -> None:
    content, said = FORMATS[name]
    (place / name).write_bytes(content)
    outcome = call(train, "--demos", name, "--model", "toy", cwd=place)
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1
    assert name in outcome.err and said in outcome.err, outcome.err


# ---- secrets ----


def test_no_secret_is_in_any_file_of_the_run_or_in_200_answers(
    trained: Outcome, place: Path
) -> None:
    flags = ("--against", "base", "-n", "1", "--max-new-tokens", "8", "--general", "0")
    judged = call(evaluate, "runs/sent", *flags, cwd=place)
    assert judged.code == 0, judged.err
    assert "longest run of copied words" in judged.out
    assert "secrets that came out" not in judged.out
    asked = ("--prompt", "The password is", "-n", "200", "--max-new-tokens", "12")
    answers = call(sample, "--adapter", "runs/sent", *asked, cwd=place)
    assert answers.code == 0, answers.err
    written = [file for file in place.rglob("*") if file.is_file() and file.name != "sent.mbox"]
    texts = [file.read_bytes().decode("utf-8", errors="replace") for file in written]
    assert len(texts) > 10
    for secret in (*SECRETS, "Petrova"):
        for text in (trained.out, trained.err, judged.out, answers.out, *texts):
            assert secret not in text and json.dumps(secret)[1:-1] not in text, secret


# ---- advice, and --inspect ----

LONG = {"prompt": "Write to Sam.", "completion": own(3)}


def checked(tmp_path: Path, *demos: dict[str, str], flags: tuple[str, ...] = ()) -> str:
    write_checkpoint(tmp_path / "toy", max_position_embeddings=1024)
    write_jsonl(tmp_path / "demos.jsonl", [*demos])
    common = ("--demos", "demos.jsonl", "--model", "toy", "--inspect", *TINY_SFT, *flags)
    outcome = call(train, "--method", "sft", *common, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    return outcome.out


def test_one_demonstration_is_advised_against_and_three_equal_ones_are_one(tmp_path: Path) -> None:
    said = "warning: one demonstration alone is mostly learned by heart: give three to ten"
    assert said in checked(tmp_path, LONG)
    out = checked(tmp_path, LONG, LONG, LONG)
    assert said in out and "warning: 2 demonstrations that repeat others count once" in out
    assert "line 2" not in out


def test_near_duplicates_are_named(tmp_path: Path) -> None:
    changed = {**LONG, "completion": LONG["completion"].replace("went", "walked")}
    other = {**LONG, "completion": own(4)}
    out = checked(tmp_path, LONG, other, changed)
    assert "warning: demos.jsonl, line 3: nearly the same as demos.jsonl, line 1" in out
    assert "line 2: nearly" not in out and "one demonstration alone" not in out


def test_inspect_counts_every_demonstration_and_says_what_is_cut(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    user, answer = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": own(4)}
    write_checkpoint(tmp_path / "toy")
    tokenizer = Tokenizer.from_folder(tmp_path / "toy")
    with_system = {"messages": [system, user, answer]}
    out = checked(tmp_path, LONG, with_system, flags=("--max-length", "100"))  # type: ignore[arg-type]
    first, second, third, fourth, *_ = out.split("\n")
    prompt = len(tokenizer.encode_prompt("Write to Sam."))
    whole = len(tokenizer.encode_completion(own(3)))
    assert first == (
        f"demos.jsonl, line 1: {prompt} prompt + {whole} completion tokens, cut to {100 - prompt} "
        "(without an end token)"
    )
    assert second == "  system prompt: none"
    assert third.startswith("demos.jsonl, line 2: ") and "cut to" in third
    assert fourth == "  system prompt: the file's: 'Be kind.'"


def test_a_template_that_brings_a_system_prompt_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "toy")
    tokenizer = Tokenizer.from_folder(tmp_path / "toy")
    user = [{"role": "user", "content": "Hi?"}]
    assert system_prompt(user, tokenizer) == "none"
    assert tokenizer.template is not None
    tokenizer.template = "<|im_start|>system\nBe brief.<|im_end|>\n" + tokenizer.template
    assert system_prompt(user, tokenizer) == "the chat template's own: 'Be brief.'"


def test_a_character_of_several_tokens_is_shown_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "toy")
    tokenizer = Tokenizer.from_folder(tmp_path / "toy")
    texts = texts_of(tokenizer.encode_completion("a é 🍞.")[:-1], tokenizer)
    shown = "".join(texts)
    assert "é" in shown and "🍞" in shown and "\ufffd" not in shown
    assert shown.replace("…", "") == "a é 🍞." and shown.count("…") == 4
