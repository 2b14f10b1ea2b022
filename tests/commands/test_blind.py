"""`minialign blind`, and what evaluate.py and train.py make of the votes."""

from __future__ import annotations

import http.client
import json
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers.blind import blind_run, content_of, votes_file
from helpers.commands import Outcome, call, evaluate, train, train_toy
from helpers.evaluations import FAST, evaluation
from helpers.files import tree, write_jsonl
from helpers.workplaces import write_workplace

from minialign.commands import blind as command
from minialign.commands.serve import VoteServer
from minialign.data.votes import read_votes
from minialign.evaluation.blind import make_blind


def ask(*arguments: str, cwd: Path) -> Outcome:
    return call(command, *arguments, cwd=cwd)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return blind_run(tmp_path / "runs" / "emails")


# ---- the page ----


def test_it_writes_a_page_and_says_what_comes_next(tmp_path: Path, run: Path) -> None:
    outcome = ask("runs/emails", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [
        "40 pairs, for any browser, offline too: runs/emails/blind.html",
        "then: python evaluate.py runs/emails --votes votes.jsonl",
    ]
    assert len(content_of((run / "blind.html").read_text("utf-8"))["pairs"]) == 40
    assert 'href="blind.html"' in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("flags", "differs"),
    [
        (("--pairs", "7"), True),
        (("--seed", "1"), True),
        (("--against", "base"), True),
        (("--person",), True),
        (("--out", "other.html"), False),
        (("--against", "base,sft"), False),
    ],
)
def test_every_flag_does_what_it_says(
    tmp_path: Path, run: Path, flags: tuple[str, ...], differs: bool
) -> None:
    assert ask("runs/emails", cwd=tmp_path).code == 0
    usual = (run / "blind.html").read_text("utf-8")
    assert ask("runs/emails", *flags, cwd=tmp_path).code == 0
    file = tmp_path / "other.html" if "--out" in flags else run / "blind.html"
    found = file.read_text("utf-8")
    assert (content_of(found) != content_of(usual)) == differs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("runs/emails", "--pairs", "0"), "pairs must be at least 1"),
        (("runs/emails", "--port", "80"), "--port needs --serve"),
        (("runs/emails", "--serve", "--port", "99999"), "port must lie in"),
        (("runs/emails", "--serve", "--out", "a"), "leave out --out"),
        (("runs/emails", "--out", "no/such/page.html"), "cannot be written"),
        (("runs",), "not a run folder"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(
    tmp_path: Path, run: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = tree(tmp_path)
    outcome = ask(*arguments, cwd=tmp_path)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err
    assert tree(tmp_path) == before


# ---- the server ----


@pytest.fixture
def server(run: Path) -> Iterator[VoteServer]:
    with VoteServer(make_blind(run, (), 10, 0), run / "votes.jsonl") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(
    server: VoteServer, method: str, path: str = "", body: bytes = b"", **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path or server.path, body or None, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_a_vote_is_saved_at_once_and_others_are_kept(
    server: VoteServer, run: Path, tmp_path: Path
) -> None:
    older = make_blind(run, (), 3, 5)
    file = votes_file(run / "votes.jsonl", older, lambda *_: "left")
    status, page = request(server, "GET")
    assert status == 200 and content_of(page)["cast"] == [] and content_of(page)["live"]
    sent = votes_file(tmp_path / "sent.jsonl", server.blind, lambda *_: "right").read_bytes()
    for _ in range(2):
        assert request(server, "POST", body=sent) == (204, "")
        votes = read_votes(file)
        assert [vote.page for vote in votes] == [older.page] * 3 + [server.blind.page] * 10
    cast = content_of(request(server, "GET")[1])["cast"]
    assert cast == [[n, "right"] for n in range(10)]


def test_it_answers_nobody_else(server: VoteServer, run: Path, tmp_path: Path) -> None:
    """Neither who guesses the name, nor a page that has another host's name for this machine."""
    assert urlsplit(server.address).hostname == "127.0.0.1" and len(server.path) > 20
    assert server.server_address[0] == "127.0.0.1"
    sent = votes_file(tmp_path / "sent.jsonl", server.blind, lambda *_: "left").read_bytes()
    for path, host in (("/", server.host), (server.path, f"evil.example:{server.server_port}")):
        assert request(server, "GET", path, Host=host) == (404, "")
        assert request(server, "POST", path, sent, Host=host) == (404, "")
    assert not (run / "votes.jsonl").exists()


def test_what_no_page_sends_is_not_saved(server: VoteServer, run: Path, tmp_path: Path) -> None:
    kept = votes_file(run / "votes.jsonl", server.blind, lambda *_: "left").read_bytes()
    other = votes_file(tmp_path / "o.jsonl", make_blind(run, (), 3, 5), lambda *_: "left")
    for body, said in ((b"{", "not valid JSON"), (other.read_bytes(), "another page's")):
        status, text = request(server, "POST", body=body)
        assert status == 400 and said in text
    assert request(server, "POST", **{"Content-Length": str(1 << 40)})[0] == 413
    assert (run / "votes.jsonl").read_bytes() == kept


def test_a_taken_port_is_refused(server: VoteServer, run: Path, tmp_path: Path) -> None:
    outcome = ask("runs/emails", "--serve", "--port", str(server.server_port), cwd=tmp_path)
    assert outcome.code == 2 and "cannot be listened on" in outcome.err


# ---- evaluate.py --votes ----


def judged(tmp_path: Path, run: Path, choose: Any, pairs: int = 40) -> tuple[Outcome, Any]:
    votes_file(tmp_path / "votes.jsonl", make_blind(run, (), pairs, 0), choose)
    outcome = call(evaluate, "runs/emails", "--votes", "votes.jsonl", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    return outcome, json.loads((run / "evaluation.json").read_text("utf-8"))["judges"]


def test_the_votes_come_back_as_rates(tmp_path: Path, run: Path) -> None:
    """ditto beats base, and loses to sft; no model is loaded, for there is none."""

    def choose(left: str, right: str) -> str:
        winner = "ditto" if "base" in (left, right) else "sft"
        return "left" if left == winner else "right"

    outcome, judges = judged(tmp_path, run, choose)
    assert [judge["name"] for judge in judges] == ["votes", "style"]
    assert re.search(r"ditto against base +100%   \(95 % interval \d\d% to 100%\)", outcome.out)
    assert re.search(r"ditto against sft +0%   \(95 % interval 0% to", outcome.out)
    assert re.search(r"ditto, mean against all others +50%", outcome.out)
    rates = {(w["first"], w["second"]): w["rate"] for w in judges[0]["wins"]}
    assert rates[("ditto", "base")] == 1 and rates[("ditto", "sft")] == 0
    report = (run / "report.html").read_text("utf-8")
    assert "Judge: votes" in report and report.index("Judge: votes") < report.index("Judge: style")
    again, judges = judged(tmp_path, run, choose)
    assert again.out == outcome.out and [j["name"] for j in judges] == ["votes", "style"]


def test_a_random_voter_gets_a_half_with_an_interval_that_says_so(
    tmp_path: Path, run: Path
) -> None:
    chance = random.Random(3)
    outcome, judges = judged(tmp_path, run, lambda *_: chance.choice(["left", "right"]))
    mean = judges[0]["mean"]["ditto"]
    assert mean["low"] < 0.5 < mean["high"] and abs(mean["rate"] - 0.5) < 0.2
    assert all(w["low"] < 0.5 < w["high"] for w in judges[0]["wins"] if w["rate"] is not None)
    assert "not enough votes yet: about" in " ".join(outcome.out.split())


def test_broken_votes_are_refused_before_anything(tmp_path: Path, run: Path) -> None:
    before = tree(run)
    (tmp_path / "votes.jsonl").write_text("{}\n")
    for flags in (("--votes", "votes.jsonl"), ("--judges", "votes"), ("--votes", "none.jsonl")):
        outcome = call(evaluate, "runs/emails", *flags, cwd=tmp_path)
        assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert tree(run) == before


# ---- the whole way, with a toy model ----


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, evaluated and voted on."""
    folder = write_workplace(tmp_path_factory.mktemp("voted"))
    held_out = [{"prompt": f"Ask for {n}.", "completion": f"Sam, the {n}? Kim"} for n in range(4)]
    write_jsonl(folder / "demos_test.jsonl", held_out)
    train_toy(folder)
    flags = (*FAST, "--judges", "style", "--n", "2", "--against", "base,sft")
    assert call(evaluate, "runs/demos", *flags, cwd=folder).code == 0
    assert ask("runs/demos", cwd=folder).code == 0
    blind = make_blind(folder / "runs" / "demos", (), 40, 0)
    votes_file(
        folder / "votes.jsonl", blind, lambda left, _: "left" if left == "ditto" else "right"
    )
    return folder


def test_a_contest_that_is_held_anew_hears_the_votes_too(workplace: Path) -> None:
    """The same seed writes the same answers, so the votes are about them."""
    flags = (*FAST[2:], "--judges", "style", "--n", "2", "--against", "base,sft")
    before = evaluation(workplace)["judges"]
    outcome = call(evaluate, "runs/demos", *flags, "--votes", "votes.jsonl", cwd=workplace)
    assert outcome.code == 0, outcome.err
    votes, style = evaluation(workplace)["judges"]
    assert style == before[0] and votes["name"] == "votes" and votes["can_judge"]
    rates = {(w["first"], w["second"]): w["rate"] for w in votes["wins"]}
    assert rates[("ditto", "base")] == rates[("ditto", "sft")] == 1
    assert "agreement with the votes (half is chance)" in outcome.out
    compared = [
        (win, p, i)
        for win in ("base", "sft")
        for p in range(4)
        for i in range(2)
        if style["can_judge"]
    ]
    assert ("style" in votes["agreement"]) == bool(compared)


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_run_learns_from_the_votes(workplace: Path, method: str) -> None:
    out = f"runs/{method}-votes"
    knobs = ("--learning-rate", "0.01", "--epochs", "3")
    flags = ("--method", method, "--votes", "votes.jsonl", "--init-adapter", "runs/demos", *knobs)
    outcome = call(train, *flags, "--model", "toy", "--out", out, cwd=workplace)
    assert outcome.code == 0, outcome.err
    count = len(read_votes(workplace / "votes.jsonl"))
    assert f"{count} votes on 4 prompts: votes.jsonl" in outcome.out
    assert "no longer unseen" in outcome.out and "evaluate.py" not in outcome.out
    record = json.loads((workplace / out / "config.json").read_text("utf-8"))
    assert record["learns_from"] == "pairs" and len(record["data_sha256"]) == 64
    lines = (workplace / out / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = [json.loads(line).get("loss") for line in lines]
    assert losses[0] > [loss for loss in losses if loss is not None][-1]
    assert "votes.jsonl" in (workplace / out / "report.html").read_text("utf-8")


def test_a_run_is_not_judged_by_prompts_whose_votes_it_learned_from(workplace: Path) -> None:
    """It is by new ones, beside the run that it began with."""
    flags = ("--method", "sft", "--votes", "votes.jsonl", "--init-adapter", "runs/demos")
    assert call(train, *flags, "--model", "toy", "--epochs", "1", cwd=workplace).code == 0
    both = ("runs/demos", "runs/demos-votes", *FAST, "--against", "base")
    outcome = call(evaluate, *both, cwd=workplace)
    assert outcome.code == 2 and "a run learned from votes on this prompt" in outcome.err
    write_jsonl(workplace / "new.jsonl", [{"prompt": "Ask anew.", "completion": "Sam? Kim"}])
    outcome = call(evaluate, *both, "--test", "new.jsonl", cwd=workplace)
    assert outcome.code == 0, outcome.err
    assert list(evaluation(workplace)["contestants"])[-1] == "demos-votes"


def test_votes_go_with_no_other_source(workplace: Path) -> None:
    votes = ("--method", "dpo", "--votes", "votes.jsonl")
    for flags, said in (
        ((*votes, "--demos", "demos.jsonl"), "--votes is all that is learned from"),
        ((*votes, "--feedback", "Be brief."), "give --votes or --feedback"),
        (("--method", "ditto", "--votes", "votes.jsonl"), "not from pairs"),
        ((*votes[:-1], "gone.jsonl"), "gone.jsonl: no such file"),
    ):
        outcome = call(train, *flags, "--model", "toy", "--out", "runs/new", cwd=workplace)
        assert outcome.code == 2 and said in outcome.err, outcome.err
    assert not (workplace / "runs" / "new").exists()
