"""``python -m kstream``: the command line, for processes that kstream starts itself."""

from .cli import main

if __name__ == "__main__":
    main()
