"""Many runs on one page."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.refusals import refusal
from report_helpers import (
    HOSTILE,
    Page,
    check_self_contained,
    check_well_formed,
    feedback_config,
    feedback_metrics,
    hostile_run,
    make_feedback_run,
    make_run,
    make_runs,
)

from minialign.evaluation.report.page import write_comparison


def test_a_comparison_has_a_row_a_run_and_a_column_a_knob_that_differs(tmp_path: Path) -> None:
    target = tmp_path / "all.html"
    assert write_comparison(make_runs(tmp_path), target) == target
    page = Page(target.read_text(encoding="utf-8"))
    check_well_formed(page)
    check_self_contained(page)
    heads = [a for tag, a in page.elements if tag == "th" and a.get("scope") == "col"]
    rows = [a for tag, a in page.elements if tag == "th" and a.get("scope") == "row"]
    assert len(heads) == 6 and [a["data-sort"] for a in rows] == ["run 0", "run 1", "run 2"]
    for shown in ("learning_rate", "0.0001", "3e-05", "60\u00a0%", "70\u00a0%", "3.125", "32 s"):
        assert shown in "".join(page.texts)
    assert "beta" not in page.text  # the same everywhere
    assert [label.split(":")[0] for label in page.labels()] == [
        *("SFT loss", "Preference loss", "Margins", "Unseen texts")
    ]
    assert all(f"run {number}" in label for label in page.labels() for number in range(3))


def test_a_comparison_of_runs_from_feedback_has_their_scores(tmp_path: Path) -> None:
    runs = [
        make_feedback_run(tmp_path / "one"),
        make_feedback_run(tmp_path / "two", config=feedback_config("dpo"), evaluation=None),
    ]
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8"))
    check_well_formed(page)
    check_self_contained(page)
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', page.source)
    assert heads == ["Run", "Method", "S_in", "S_out", "S_overall", "Time"]
    for shown in ("0.90 ± 0.06", "0.08 ± 0.04", "0.91 ± 0.03", "C3PO", "DPO"):
        assert shown in page.text
    assert "Share won" not in page.text
    assert [label.split(":")[0] for label in page.labels()] == [
        *("Loss from feedback", "Margins", "Kept answers near the scope")
    ]


def near_charts(page: Page) -> list[tuple[str, str, set[str]]]:
    """The constraint's charts: title, unit, and the runs that are drawn."""
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.source, re.DOTALL)
    texts = [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text)).strip() for text in captions]
    found = []
    for text, label in zip(texts, page.labels(), strict=True):
        title, _, drawn = label.partition(": ")
        if title.endswith("near the scope"):
            unit = text.removeprefix(title).strip()
            found.append((title, unit, {name.split()[0] for name in drawn.split("; ")}))
    return found


def test_a_comparison_draws_each_kind_and_unit_of_the_constraint_by_itself(tmp_path: Path) -> None:
    runs = []
    for name, constraint, reduction in (
        *(("a", "nll", "sum"), ("b", "nll", "token_mean"), ("c", "nll", "sequence_mean")),
        *(("d", "kl", "sum"), ("e", "kl", "token_mean")),
    ):
        record = feedback_config()
        record["knobs"] |= {"constraint": constraint, "constraint_reduction": reduction}
        lines = [
            {key.replace("nll/near", f"{constraint}/near"): value for key, value in line.items()}
            for line in feedback_metrics()
        ]
        runs.append(make_feedback_run(tmp_path / name, config=record, metrics=lines))
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8"))
    check_well_formed(page)
    kept, moved, kl = "Kept answers near the scope", "Divergence near the scope", "KL from the base"
    assert near_charts(page) == [
        (kept, "nats an answer", {"a"}),
        (kept, "nats per token", {"b", "c"}),
        (moved, f"{kl} model, nats an answer", {"d"}),
        (moved, f"{kl} model, nats per token", {"e"}),
    ]


def test_a_comparison_of_both_kinds_has_the_columns_of_both(tmp_path: Path) -> None:
    runs = [make_feedback_run(tmp_path / "one"), *make_runs(tmp_path)]
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8"))
    check_well_formed(page)
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', page.source)
    assert heads[:7] == [
        *("Run", "Method", "Share won", "Unseen, nats per token", "S_in", "S_out", "S_overall")
    ]
    rows = re.findall(r"<tbody>(.*)</tbody>", page.source, re.DOTALL)[0].split("</tr>")[:-1]
    assert [row.count("<td") for row in rows] == [len(heads) - 1] * 4
    assert [label.split(":")[0] for label in page.labels()] == [
        *("Loss from feedback", "Margins", "Kept answers near the scope"),  # the first run's
        *("SFT loss", "Preference loss", "Unseen texts"),
    ]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / place / "mine") for place in "ab"]
    page = Page(write_comparison([*folders, folders[0]], tmp_path / "all.html").read_text())
    rows = [a["data-sort"] for tag, a in page.elements if tag == "th" and a.get("scope") == "row"]
    assert rows == [str(folder) for folder in folders]


def test_a_comparison_shows_hostile_names_as_text(tmp_path: Path) -> None:
    files = {**hostile_run(HOSTILE["html"]), "samples": None}
    runs = [make_run(tmp_path / "<b>&amp;", **files), *make_runs(tmp_path)]
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8"))
    check_well_formed(page)
    check_self_contained(page)
    assert "<b>&amp;" in page.texts and "img" not in [tag for tag, _ in page.elements]


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    assert "no runs" in refusal(lambda: write_comparison([], tmp_path / "all.html"))
    assert not (tmp_path / "all.html").exists()
