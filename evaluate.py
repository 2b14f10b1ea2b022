"""What did it learn? Lets a run and its rivals answer unseen prompts, and judges.

python evaluate.py runs/emails
python evaluate.py runs/emails --against base,few-shot,sft,spin --test more_emails.jsonl
python evaluate.py --compare runs/*
"""

from __future__ import annotations

import sys

from minialign.commands.cli import run_main
from minialign.commands.evaluate import main

if __name__ == "__main__":
    run_main("evaluate.py", lambda: main(sys.argv[1:]))
