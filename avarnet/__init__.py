"""The command line: every command is a few lines that call the four parts."""

from importlib.metadata import version

from avarnet.main import app, main

__version__ = version("avarnet")
__all__ = ["__version__", "app", "main"]
