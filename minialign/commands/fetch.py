"""Fetching a model beforehand: the folder that a name stands for."""

from __future__ import annotations

from minialign.commands.cli import OneLineParser
from minialign.weights.find import DEFAULT_MODEL, find_checkpoint

DESCRIPTION = "Fetch a model, if it is not here yet, and print its folder."


def main(arguments: list[str]) -> None:
    parser = OneLineParser("minialign fetch", DESCRIPTION, arguments)
    parser.add_argument("name", nargs="?", default=DEFAULT_MODEL, help="alias, hub id or folder")
    print(find_checkpoint(parser.parse(arguments)["name"]))
