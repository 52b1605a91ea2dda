"""``python -m mu``: the command line."""

from mu.cli import main

if __name__ == "__main__":
    main()
