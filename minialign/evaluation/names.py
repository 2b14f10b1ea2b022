"""The contestants that no method trained, by their names in evaluation.json."""

BASE, FEW_SHOT = "base", "few-shot"
AGAIN = "base, again"
IN_CONTEXT, COT = "in-context", "in-context + CoT"
