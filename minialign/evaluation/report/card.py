"""An adapter's README.md: what was learned, how it was judged and what was not, and how to use it.

The texts that it was learned from are a person's own, so they are left out unless asked for.
"""

from __future__ import annotations

from pathlib import Path

from minialign.data.files import read_json, replace_whole
from minialign.data.records import DEMONSTRATIONS
from minialign.evaluation.report.findings import find
from minialign.evaluation.report.run_files import RunFiles, read_run

LEARNED = {True: "demonstrations of how a person writes", False: "feedback"}
NOT_JUDGED = (
    "Not judged: whether what it says is true, safe or fair; other languages; prompts unlike those"
    " that it was judged on."
)


def write_card(run: Path, adapter: Path, *, texts: bool = False) -> None:
    """Writes `adapter`/README.md from a run folder.

    `texts` quotes the sentence of feedback and the answers before and after.
    """
    content = _card(read_run(run), read_json(adapter / "adapter_config.json"), texts)
    replace_whole(adapter / "README.md", lambda file: file.write_text(content, encoding="utf-8"))


def _card(run: RunFiles, config: dict[str, object], texts: bool) -> str:
    base, found = str(config.get("base_model_name_or_path", "")), find(run)
    title = run.card.title if run.card else run.method
    about = [f"base_model: {base}"] if base and not base.startswith("/") else []
    sections = [
        "\n".join(["---", *about, "library_name: peft", "tags: [lora, minialign]", "---"]),
        f"# {run.name}",
        f"A LoRA adapter (rank {config.get('r')}) for `{base}`, trained by {title} from"
        f" {LEARNED[run.source == DEMONSTRATIONS]}.",
        "## What was learned",
        _learned(run, texts),
        "## How it was judged",
        f"{found.sentence} {found.more}".strip(),
        NOT_JUDGED,
        "## Use it",
        "```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("THIS FOLDER")\n```',
    ]
    return "\n\n".join(sections) + "\n"


def _learned(run: RunFiles, texts: bool) -> str:
    if not texts:
        return "The texts that it was learned from are private and not part of this card."
    quoted = {"The feedback": run.feedback, **{k.capitalize(): v for k, v in run.preview.items()}}
    lines = [f"{title}:\n\n{_quoted(str(text))}" for title, text in quoted.items() if text]
    return "\n\n".join(lines)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
