"""python -m minialign: the commands of an installed package."""

from __future__ import annotations

from minialign.commands.main import main

if __name__ == "__main__":
    main()
