"""What the pages say is true: links, commands, code, the tree of rooms, and every figure."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.processes import ROOT

from minialign.commands import (
    blind,
    evaluate,
    export,
    feedback,
    fetch,
    import_mail,
    job,
    main,
    sample,
    sweep,
    train,
)
from minialign.commands.job import check_method
from minialign.data.knobs import config_from_flags, flags_of, shown_value, value_at
from minialign.errors import InputError
from minialign.evaluation.knobs import EvaluateOptions
from minialign.feedback.knobs import EndpointConfig, PipelineConfig
from minialign.methods.cards import CARDS
from minialign.methods.knobs import C3PO_RECIPES, DPO_RECIPES, RECIPES
from minialign.policy.knobs import LoRAConfig

BENCHMARKS = ROOT / "benchmarks"
GUIDES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
PAGES = [
    *GUIDES,
    *(f"benchmarks/{page.name}" for page in sorted(BENCHMARKS.glob("*.md"))),
    *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("examples/*/README.md"))),
]
README_LINES = 150
RESULTS = "docs/results.md"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    level = title.index(" ")
    found = re.search(
        rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{level}}} |\Z)", read(page), re.M | re.S
    )
    assert found, f"{page}: no heading {title}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, heads and rules included."""
    found = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def blocks(page: str, language: str = "") -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.M | re.S)
    return [text for name, text in fences if name == language]


# ---- size and links ----


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) < README_LINES


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(file: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file(page: str) -> None:
    assert "](" in read(page) and "@@" not in read(page)
    assert broken_links(ROOT / page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Here\n[a](page.md#here) [b](page.md#there) [c](gone.md) [d](#here)")
    assert broken_links(page) == ["page.md#there", "gone.md"]


# ---- commands ----


def commands(page: str) -> list[str]:
    """Every command in a fenced block or in backticks."""
    text = "\n".join(blocks(page)).replace("\\\n", " ")
    inline = re.findall(r"`([^`\n]+)`", read(page))
    lines = [line.split("#")[0].strip() for line in text.splitlines()] + inline
    door, command = r"python (train|sample|evaluate)\.py .+", r"minialign (fetch|\w+ .+)"
    pattern = rf"(\.venv/bin/)?{door}|(python -m )?{command}"
    return [line for line in lines if re.fullmatch(pattern, line)]


def parse_train(arguments: list[str]) -> None:
    options, given = train.parse(arguments)
    if options.resume:
        return
    card = check_method(options, given)
    for point in sweep.grid(options.sweep) if options.sweep else []:
        assert point.keys() <= {flag.name for flag in flags_of(card.knobs_class)}


def parse_feedback(arguments: list[str]) -> None:
    classes = (feedback.FeedbackOptions, PipelineConfig, EndpointConfig)
    names = {name for config in classes for name in config.__dataclass_fields__}
    flags = [word.split("=")[0] for word in arguments if word.startswith("--")]
    assert all(flag[2:].replace("-", "_") in names for flag in flags if flag != "--help-all"), flags
    feedback.main(arguments)


def parse_command(line: str) -> None:
    """Hands a page's command to the real parser. Raises InputError or SystemExit if it is wrong."""
    words = shlex.split(line.replace(".venv/bin/", "").removeprefix("python -m "))
    if words[0] == "python":
        words = [words[1].removesuffix(".py"), *words[2:]]
    elif words[0] == "minialign":
        words = words[1:]
    name, arguments = words[0], words[1:]
    assert name in main.COMMANDS, line
    if name == "sample" and {"--feedback", "--feedbacks", "--rewrite"} & set(arguments):
        name = "feedback"
    if name == "train":
        parse_train(arguments)
    elif name == "sample":
        sample.parse(arguments)
    elif name == "evaluate":
        config_from_flags(EvaluateOptions(), evaluate.parse(arguments)[1])
    elif name == "blind":
        blind.parse(arguments)
    elif name == "feedback":
        parse_feedback(arguments)
    elif name == "export":
        export.parse(arguments)
    elif name == "import":
        import_mail.parse(arguments)
    elif arguments:
        fetch.main(arguments)


@pytest.fixture
def as_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the runs and files that the pages speak of, in which nothing is made."""
    run = tmp_path / "runs" / "emails"
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(job, "lora_of", lambda folder: LoRAConfig(dropout=0.0))
    (run / "config.json").write_text(json.dumps({"options": {"method": "ditto"}, "knobs": {}}))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feedback, "make_data", lambda options, *others: options.folder)
    monkeypatch.setattr(feedback, "rewrite", lambda options, *others: options.folder)
    monkeypatch.setattr(feedback, "make_many", lambda *others: None)
    monkeypatch.setattr(fetch, "find_checkpoint", lambda name: tmp_path)
    yield


COMMANDS = [(page, line) for page in GUIDES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_of_a_page_parses(page: str, line: str, as_a_reader: None) -> None:
    try:
        parse_command(line)
    except SystemExit as end:
        assert end.code == 0 and "--help" in line, line


def test_the_pages_have_commands_of_every_kind() -> None:
    lines = " ".join(line for _, line in COMMANDS)
    assert len(COMMANDS) > 30
    assert all(name in lines for name in ("train.py", "sample.py", "evaluate.py", "fetch"))


@pytest.mark.parametrize(
    "line",
    [
        "python train.py --demos emails.jsonl --lerning-rate 1",
        "python train.py --demos emails.jsonl --method kto",
        "python train.py --demos emails.jsonl --method sft --samples-per-prompt 3",
        "python sample.py --feedback x --categoris 3",
        "python evaluate.py runs/emails --judges oracle",
        "minialign checkpoints",
    ],
)
def test_a_wrong_command_is_found(line: str, as_a_reader: None) -> None:
    with pytest.raises((InputError, SystemExit, AssertionError)):
        parse_command(line)


def test_make_has_the_targets_that_the_pages_name() -> None:
    makefile = read("Makefile")
    for page in GUIDES:
        for target in re.findall(r"(?:^|`)make ([\w-]+)", read(page), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_reference_names_every_command_and_method() -> None:
    text = read("docs/reference.md")
    assert all(f"`minialign {name}`" in text for name in main.COMMANDS)
    cells = {row[0] for row in rows(section("docs/reference.md", "## Methods"))}
    assert {f"`{card.name}`" for card in CARDS} == cells - {"`--method`", "---"}


# ---- code ----


@pytest.mark.parametrize("page", ["README.md", "docs/reference.md"])
def test_the_snippet_compiles_and_its_names_are_there(page: str) -> None:
    import minialign

    [source] = blocks(page, "python")
    compile(source, page, "exec")
    for module, names in re.findall(r"^from (\S+) import ([^#\n]+)", source, re.M):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name}"
    for name in re.findall(r"minialign\.(\w+)\(", source):
        assert name in minialign.__all__


# ---- the tree of rooms ----


def test_the_tree_of_rooms_is_the_package() -> None:
    tree = next(text for text in blocks("README.md") if text.startswith("minialign/"))
    inside = re.findall(r"^  (\S+)  ", tree, re.M)
    outside = re.findall(r"^(\S+)  ", tree, re.M)
    package = ROOT / "minialign"
    rooms = {f"{file.parent.name}/" for file in package.glob("*/__init__.py")}
    assert sorted(inside) == sorted(rooms | {file.name for file in package.glob("*.py")})
    doors = {file.name for file in ROOT.glob("*.py")}
    assert set(outside) >= doors | {"benchmarks/", "docs/", "examples/", "tests/"}
    assert all((ROOT / name).exists() for name in outside)


def test_the_tree_of_rooms_goes_from_the_ground_up() -> None:
    from test_house import FLOOR

    tree = next(text for text in blocks("README.md") if text.startswith("minialign/"))
    names = [name.rstrip("/").removesuffix(".py") for name in re.findall(r"^  (\S+)  ", tree, re.M)]
    floors = [FLOOR[name] for name in names]
    assert floors == sorted(floors)


# ---- sizes and knobs ----


def test_the_sizes_that_pages_state() -> None:
    assert "Eight e-mails" in read("README.md")
    assert len(read("examples/emails.jsonl").splitlines()) == 8
    folder = ROOT / "examples/c3po"
    for name, *counts in rows(read("examples/c3po/README.md"))[7:10]:
        scope = name.strip("`")
        for data in folder.glob(f"*/{scope}"):
            splits = [json.loads(line)["split"] for line in data.open(encoding="utf-8")]
            assert [str(splits.count(s)) for s in ("train", "test")] == counts[:2], data
    assert {f.parent.name for f in folder.glob("*/feedback.json")} == {
        row[0].strip("`") for row in rows(read("examples/c3po/README.md"))[2:5]
    }
    cheers = [json.loads(line) for line in (folder / "cheers/in_scope.jsonl").open()]
    trained = [line for line in cheers if line["split"] == "train"]
    cut = [line for line in trained if line["baseline_finish_reason"] == "length"]
    assert f"{len(cut)} of the {len(trained)} baselines" in read("docs/results.md")


def test_the_mix_and_the_rate_in_the_text_are_the_recipes() -> None:
    paper, laptop = RECIPES["paper"], RECIPES["laptop"]
    parts = ("expert_fraction", "replay_fraction", "inter_model_fraction")
    mix = [[f"{100 * getattr(knobs, part):.0f}" for part in parts] for knobs in (paper, laptop)]
    assert mix[0] == mix[1] == re.findall(r"(\d+) %", read("README.md"))
    assert C3PO_RECIPES["laptop"].learning_rate == 1e-3
    assert "rate** (1e-3)" in read(RESULTS)
    assert DPO_RECIPES["laptop"].learning_rate == 1e-4
    assert "Its default rate on a laptop is 1e-4" in read("docs/howto.md")
    assert "`--method dpo` is therefore 1e-4" in read(RESULTS)
    counts = [row[2] for row in rows(read("examples/c3po/README.md"))[7:10]]
    said = r"each of {} prompts in scope, {} near it and {} far from it".format(*counts)
    assert said in " ".join(read(RESULTS).split())


@pytest.mark.parametrize(
    ("title", "recipes"),
    [("### On demonstrations", RECIPES), ("### On feedback and pairs", C3PO_RECIPES)],
)
def test_the_table_of_knobs_is_the_recipes(title: str, recipes: dict[str, object]) -> None:
    said = [row[:3] for row in rows(section("docs/reference.md", title))[2:]]
    assert said == [
        [
            f"`--{flag.name.replace('_', '-')}`",
            *(shown_value(value_at(recipes[name], flag.path)) for name in ("laptop", "paper")),
        ]
        for flag in flags_of(type(recipes["laptop"]))
    ]


# ---- figures ----


def measured_page(monkeypatch: pytest.MonkeyPatch) -> str:
    """The study's tables, made anew from the committed results."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    tables = importlib.import_module("ditto_tables")
    results = importlib.import_module("ditto_results")
    file = BENCHMARKS / "results" / "ditto.jsonl"
    lines = results.read_lines(file)
    return str(tables.all_tables(lines, results.read_lines(results.judged_beside(file))))


def test_the_study_of_ditto_is_the_measured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    page = measured_page(monkeypatch)
    assert page in read("benchmarks/ditto.md")
    text = section(RESULTS, "## DITTO")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) > 5
    assert [line for line in table if line not in page] == []


def test_every_share_in_the_text_on_ditto_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    page = measured_page(monkeypatch)
    said = re.findall(r"\d+\.\d+ %|\d\.\d{3}(?= nats)", section(RESULTS, "## DITTO"))
    assert said
    assert [figure for figure in said if figure not in page] == []


def test_the_first_page_does_not_claim_what_is_not_shown() -> None:
    assert "still open" in read("README.md")
    first = read("README.md").split("## The first run")[0]
    assert not re.search(r"\d ?%", first)
    assert "prefers DITTO" not in read("README.md")


def c3po_cells() -> list[list[str]]:
    """The measured table over all feedbacks."""
    text = read("benchmarks/c3po.md").split("**All feedbacks**")[1].split("**cheers**")[0]
    return rows(text)[2:]


def test_the_c3po_table_is_the_measured_one() -> None:
    said = rows(section(RESULTS, "## C3PO"))[2:]
    for ours, measured in zip(said, c3po_cells(), strict=True):
        assert ours[1:4] == [measured[1], measured[2], measured[5]], measured[0]
        assert ours[4] == measured[8].replace(" /", ","), measured[0]


def test_c3pos_figures_in_the_text_are_the_measured_ones() -> None:
    cells = {row[0]: row[1:] for row in c3po_cells()}
    text = " ".join(section(RESULTS, "## C3PO").split())
    drift = {name: row[5] for name, row in cells.items()}
    assert f"drifts by {drift['DPO alone']} nats a token" in text
    assert f"where C3PO drifts by {drift['C3PO']}." in text
    assert f"which drifts by {drift['DPO alone, lower rate']}" in text
    (s_in, s_out), (sft_in, sft_out) = (
        [cell.split(" ")[0] for cell in cells[name][:2]] for name in ("C3PO", "SCD")
    )
    first = " ".join(read("README.md").split())
    assert f"({s_in} against {sft_in})" in first and f"({s_out} against {sft_out};" in first


def test_the_anchors_table_is_the_measured_one() -> None:
    lines = [json.loads(line) for line in (BENCHMARKS / "results/anchors.jsonl").open()]
    drift = {
        arm: statistics.mean(x["drift"] for x in lines if x["arm"] == arm)
        for arm in {line["arm"] for line in lines if "drift" in line}
    }
    for name, *cells in rows(section(RESULTS, "## Anchors"))[2:]:
        assert cells == [f"{drift[name]:.3f}", f"{100 * drift[name] / drift['DITTO']:.0f} %"]


# A row of docs/results.md -> its part of speed.md's table, and the rival's row in it.
TUNED = "the same, allocator tuned"
SPEED = [
    ("A DPO step on 4 pairs", "TRL + PEFT, 4 pairs at a time"),
    ("A DPO step on 4 pairs", TUNED),
    ("A DITTO step", TUNED),
    ("Rollouts", "transformers"),
    ("Writing, 1 row", "llama.cpp, 32 bits"),
    ("Writing, 40 rows", "llama.cpp, 32 bits"),
]


def test_the_speeds_are_the_measured_ones() -> None:
    parts: dict[str, dict[str, list[str]]] = {}
    part: dict[str, list[str]] = {}
    for row in rows(read("benchmarks/speed.md"))[2:]:
        if row[0].startswith("**"):
            parts[row[0].strip("*")] = part = {}
        else:
            part[row[0]] = row[1:]
    said = rows(section(RESULTS, "## Speed"))[2:]
    for (_, ours, theirs, ratio), (title, rival) in zip(said, SPEED, strict=True):
        [table] = [table for name, table in parts.items() if name.startswith(title)]
        assert ours.split(" ")[0] == table["minialign"][0].split(" ")[0]
        assert theirs.split(" ")[0] == table[rival][0].split(" ")[0]
        # speed.md says it of the rival, results.md of minialign
        factor, _, way = table[rival][1].split(" ")
        assert ratio == f"{factor} times {'faster' if way == 'slower' else 'slower'}"
    step = next(table for name, table in parts.items() if name.startswith("A DPO step"))
    memory = [step[name][4].split(",")[0] for name in ("minialign", SPEED[0][1])]
    text = " ".join(section(RESULTS, "## Speed").split())
    assert f"needs {memory[0]} above the loaded model" in text and f"at a time {memory[1]}." in text


def test_what_has_no_record_is_marked_as_an_example() -> None:
    def paragraph(page: str, words: str) -> str:
        [found] = [part for part in read(page).split("\n\n") if words in part]
        return found

    assert "example from one run" in paragraph("README.md", "No record of that run")
    assert "| before | after |" in read("README.md").split("(An example from one run")[0]
    unrecorded = r"(four and a half|8\.6) minutes|218 seconds|2\.5 GB"
    for page in GUIDES:
        for part in read(page).split("\n\n"):
            if re.search(unrecorded, part):
                assert part.startswith("An example without a record"), part
