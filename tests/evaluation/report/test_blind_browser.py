"""The blind page in a browser: a script votes on it, on a phone's width and on a desk's."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from helpers.blind import HOSTILE, blind_run, content_of
from helpers.browser import CHROMIUM, Tab, browser, wait_for
from helpers.commands import call, evaluate

from minialign.commands.serve import VoteServer
from minialign.data.votes import Vote, read_votes
from minialign.evaluation.blind import blind_page, make_blind
from minialign.evaluation.judges.verdicts import judgement_of
from minialign.evaluation.judges.votes import ByVotes, texts_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: nobody votes in a browser")
VOTES = 40
WIDTHS = (390, 1280)
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "neither": "ArrowDown"}
# Types what is queued, as fast as the page takes it.
TYPE = """(keys => {
  for (const key of keys) dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
})"""
SHOWN = """({ count: document.querySelector("#count").textContent,
  left: document.querySelector("#left").textContent,
  prompt: document.querySelector("#prompt").textContent,
  end: !document.querySelector("#end").hidden })"""
# What a phone must not do: scroll sideways, hide a choice, show one that is too small to tap.
LAYOUT = """({ wide: document.documentElement.scrollWidth - innerWidth,
  buttons: [...document.querySelectorAll("#choices button")].map(b => {
    const box = b.getBoundingClientRect();
    return [Math.min(box.width, box.height), box.bottom <= innerHeight && box.top >= 0]; }) })"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def press(tab: Tab, votes: list[str]) -> None:
    tab.ask(f"{TYPE}({json.dumps([KEYS[vote] for vote in votes])})")


@pytest.mark.parametrize("width", WIDTHS)
def test_forty_votes_survive_a_reload_and_come_back_as_rates(
    tmp_path: Path, tab: Tab, width: int
) -> None:
    folder = blind_run(tmp_path / "runs" / "emails", text=HOSTILE)
    blind = make_blind(folder, (), VOTES, width)
    page = tmp_path / "blind.html"
    page.write_text(blind_page(blind), "utf-8")
    chance = random.Random(width)
    votes = [chance.choice(["left", "left", "right", "neither"]) for _ in range(VOTES)]
    seen = len(tab.requests)
    tab.size(width)
    tab.open(page.as_uri())
    found = tab.ask(LAYOUT)
    assert found["wide"] <= 0 and len(found["buttons"]) == 3
    assert all(size >= 44 and visible for size, visible in found["buttons"])
    assert tab.ask(SHOWN)["left"] == blind.pairs[0].left.answer.text

    # real key presses and taps, then a mistake that is taken back
    tab.press(KEYS[votes[0]])
    tab.click(f"[data-vote={votes[1]}]")
    press(tab, votes[2:17])
    tab.press("a" if votes[17] == "right" else "b")
    tab.press("z")
    tab.reload()
    found = tab.ask(SHOWN)
    assert found["count"] == "17 of 40" and found["left"] == blind.pairs[17].left.answer.text
    press(tab, votes[17:])
    assert tab.ask(SHOWN)["end"]

    tab.save_downloads(tmp_path)
    tab.click("#save")
    cast = read_votes(wait_for(tmp_path / "votes.jsonl"))
    assert [vote.choice for vote in cast] == votes
    assert [(v.left, v.right, v.messages) for v in cast] == [
        (pair.left, pair.right, pair.messages) for pair in blind.pairs
    ]
    assert {url for url in tab.requests[seen:] if "blob:" not in url} == {page.as_uri()}
    assert tab.complaints == [] and tab.ask("document.title").startswith("emails: which")
    check_rates(tmp_path, folder, cast)


def check_rates(tmp_path: Path, folder: Path, cast: list[Vote]) -> None:
    """evaluate.py finds the rates that were voted."""
    outcome = call(evaluate, "runs/emails", "--votes", "votes.jsonl", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    judge = json.loads((folder / "evaluation.json").read_text("utf-8"))["judges"][0]
    for rival in ("base", "sft"):
        shares = [v.share_of("ditto") for v in cast if rival in (v.left.by, v.right.by)]
        (rate,) = [
            w["rate"] for w in judge["wins"] if (w["first"], w["second"]) == ("ditto", rival)
        ]
        assert rate == pytest.approx(sum(shares) / len(shares)) and len(shares) == 20
    expected = judgement_of(ByVotes(cast), texts_of(cast, "ditto"))
    assert judge["mean"]["ditto"]["low"] == pytest.approx(expected.mean["ditto"].low)


def test_who_wrote_what_is_shown_at_the_end_and_then_nothing_changes(
    tmp_path: Path, tab: Tab
) -> None:
    blind = make_blind(blind_run(tmp_path / "run"), (), 6, 0)
    page = tmp_path / "blind.html"
    page.write_text(blind_page(blind), "utf-8")
    tab.open(page.as_uri())
    assert "DITTO" not in tab.ask("document.body.innerText")
    press(tab, ["left", "left", "neither"])
    tab.ask("document.querySelector('#finish').click()")
    assert "DITTO" not in tab.ask("document.body.innerText")
    tab.ask("document.querySelector('#back').click()")
    assert not tab.ask(SHOWN)["end"]
    press(tab, ["right"] * 3)
    tab.ask("document.querySelector('#reveal').click()")
    winners = [p.left.by for p in blind.pairs[:2]] + [p.right.by for p in blind.pairs[3:]]
    text = tab.ask("document.querySelector('#tally').innerText")
    assert f"DITTO\nchosen {winners.count('ditto')} of 6, 1 for neither" in text
    tab.press("z")
    tab.reload()
    assert tab.ask(SHOWN)["count"] == "6 of 6"
    assert tab.ask("document.querySelector('#tally').innerText") == text


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_legible_in_light_and_in_dark(tmp_path: Path, tab: Tab, dark: bool) -> None:
    page = tmp_path / "blind.html"
    page.write_text(blind_page(make_blind(blind_run(tmp_path / "run"), (), 3, 0)), "utf-8")
    tab.size(390, dark=dark)
    tab.open(page.as_uri())
    ground = tab.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 180) == dark
    tab.size(1280)


def test_a_served_page_saves_each_vote_at_once(tmp_path: Path, tab: Tab) -> None:
    """Another browser, which kept nothing, goes on where this one stopped."""
    folder = blind_run(tmp_path / "run", text=HOSTILE)
    file = folder / "votes.jsonl"
    with VoteServer(make_blind(folder, (), 8, 0), file) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            seen = len(tab.requests)
            tab.open(server.address)
            for count, vote in enumerate(("left", "neither", "right"), start=1):
                press(tab, [vote])
                settled(tab, file, count)
            tab.ask("localStorage.clear()")
            tab.reload()
            assert tab.ask(SHOWN)["count"] == "3 of 8"
            assert {urlsplit(url).netloc for url in tab.requests[seen:]} == {server.host}
        finally:
            server.shutdown()
            thread.join()
    assert [vote.choice for vote in read_votes(file)] == ["left", "neither", "right"]


def settled(tab: Tab, file: Path, count: int) -> None:
    """Waits for the server's answer to the last vote."""
    tab.ask("new Promise(done => setTimeout(done, 150))")
    assert len(read_votes(wait_for(file))) == count
    assert content_of(tab.ask("document.documentElement.outerHTML"))["live"]
