"""The contestants that no method trained, by their names in evaluation.json."""

BASE, FEW_SHOT = "base", "few-shot"
AGAIN = "base, again"
PERSON = "the person"  # who wrote the held-out texts
IN_CONTEXT, COT = "in-context", "in-context + CoT"
