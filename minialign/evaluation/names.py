"""The contestants that no method trained, by their names in evaluation.json."""

BASE, FEW_SHOT = "base", "few-shot"
AGAIN = "base, again"
PERSON = "the person"  # who wrote the held-out texts
IN_CONTEXT, COT = "in-context", "in-context + CoT"
# What the method was to learn: the revised answer in scope, elsewhere the base model's own.
REVISION = "revision"
