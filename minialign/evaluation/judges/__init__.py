"""One file a judge, one row a judge. A judge's module offers `build(trial)`, see verdicts.py.

Nothing heavy is imported here: the flags are checked against these names.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from minialign.data.knobs import nearest, require

PANEL = "panel"
OFFLINE = (PANEL, "style", "character", "delta")  # need nothing but the texts
# These ask a model, which must be named.
MODEL, QUALITY = "model", "quality"
ASKING = (MODEL, QUALITY)
# The first is made of others, the second is asked something else: neither agrees or disagrees.
APART = (PANEL, QUALITY)
VOTES = "votes"  # the person, whose votes are read from a file
JUDGES: dict[str, str] = {  # name -> module
    PANEL: "minialign.evaluation.judges.by_panel",
    "style": "minialign.evaluation.judges.by_style",
    "character": "minialign.evaluation.judges.by_character",
    "delta": "minialign.evaluation.judges.by_delta",
    MODEL: "minialign.evaluation.judges.model",
    QUALITY: "minialign.evaluation.judges.quality",
    VOTES: "minialign.evaluation.judges.votes",
}
# A few words behind a judge's name in --help.
HELPS = {
    PANEL: "the next three as one; all four offline",
    "style": "words and punctuation",
    "character": "runs of characters",
    "delta": "frequent words",
    MODEL: "asks --judge-model, with --judge-url or without: whose hand?",
    QUALITY: "asks it too: which answer is the better one?",
    VOTES: "the person's, from --votes",
}


def register(name: str, module: str, help: str = "") -> None:
    """Adds a judge from outside the package. Raises InputError for a name that is taken."""
    require(name not in JUDGES, f"there is a judge called {name} already: choose another name")
    JUDGES[name], HELPS[name] = module, help


def judges_help() -> str:
    """All judges that there are, each with a few words."""
    return ", ".join(f"{name} ({said})" if (said := HELPS.get(name)) else name for name in JUDGES)


def check_judge(name: str) -> None:
    """Raises InputError for a judge that is not there."""
    require(name in JUDGES, f"judges: there is no judge called {name!r}{nearest(name, JUDGES)}")


def module_of(name: str) -> ModuleType:
    return importlib.import_module(JUDGES[name])
