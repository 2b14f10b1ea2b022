"""Ask a model, with or without an adapter.

python sample.py --adapter runs/emails --prompt "Write an email to ..." -n 3
python sample.py --adapter runs/emails --prompts prompts.jsonl --out answers.jsonl
python sample.py --adapter runs/emails --chat
python sample.py --adapter runs/emails --adapter runs/cheers=0.5 --prompt "..."
python sample.py --feedback "End every e-mail to my team with 'Cheers, Sam'"      (--help for more)
"""

from __future__ import annotations

import sys

from minialign.commands.cli import run_main
from minialign.commands.sample import main

if __name__ == "__main__":
    run_main("sample.py", lambda: main(sys.argv[1:]))
