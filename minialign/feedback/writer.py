"""Who wrote a folder of feedback: C3PO learns from answers of the model that is trained.

feedback.json says it under "written_by": `prompts` and `responses` name who wrote them, and
`weights` tells the checkpoint, where the responses are the trained model's own.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from minialign.data.feedback import DESCRIPTION
from minialign.data.files import read_json
from minialign.errors import InputError
from minialign.feedback.teacher import Teacher
from minialign.weights.find import ALIASES

WRITTEN_BY = "written_by"
LOOKS, LOOK = 64, 4096  # places of a file that are looked at, and bytes at each


def written_by(student: Teacher, weights: str) -> dict[str, str]:
    return {"responses": student.name} | ({"weights": weights} if weights else {})


def fingerprint(checkpoint: Path) -> str:
    """Tells two checkpoints apart, wherever they lie, by a few hundred kilobytes of each file."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for look in range(LOOKS):
                file.seek(size * look // LOOKS)
                digest.update(file.read(LOOK))
    return digest.hexdigest()


def check_writer(folder: Path, model: str, checkpoint: Path) -> None:
    """Raises InputError where another model wrote the responses, and says how to have them anew.

    A folder that does not say who wrote it is taken as it is.
    """
    record = read_json(folder / DESCRIPTION).get(WRITTEN_BY)
    if not isinstance(record, dict) or not record.get("weights"):
        return
    writer = str(record.get("responses"))
    is_same = ALIASES.get(writer, writer) == ALIASES.get(model, model) and not Path(model).is_dir()
    if is_same or record["weights"] == fingerprint(checkpoint):
        return
    again = f"python sample.py --rewrite {shlex.quote(str(folder))}"
    raise InputError(
        f"{folder}: {writer} wrote its responses, and C3PO learns from a model's own: have them "
        f'written anew: {again} --model {shlex.quote(model)} (or delete "{WRITTEN_BY}" from '
        f"{DESCRIPTION})"
    )
