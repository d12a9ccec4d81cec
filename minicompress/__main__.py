"""`python -m minicompress` is the command `minicompress`."""

import sys


def main():
    """Runs the command line, or says what it needs."""
    try:
        from minicompress import cli
    except ModuleNotFoundError as missing:
        print(f"minicompress: {missing.name} is not installed; pip install 'minicompress[cli]'", file=sys.stderr)
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
