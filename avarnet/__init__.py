"""The command line: every command is a few lines that call the four parts."""

from avarnet.main import app, main

__all__ = ["app", "main"]
