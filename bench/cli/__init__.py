"""The command `bench`: words in, words out."""

from bench.cli.program import main as main
