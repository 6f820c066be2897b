"""The command line ``tilewright``: a file a command. It prints; what it shows is made elsewhere."""

from tilewright.cli.app import app, main

__all__ = ["app", "main"]
