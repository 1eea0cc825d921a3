"""`python -m setr` and the command `setr` are the command line."""

import sys


def main() -> int:
    """Run it and return the exit code; while it is imported, too, Ctrl-C ends in one line."""
    try:
        from setr.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("setr: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
