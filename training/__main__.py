"""``python -m kstream.training``."""

from .commands import app

if __name__ == "__main__":
    app()
