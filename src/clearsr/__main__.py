"""`python -m clearsr`: the same as the `clearsr` command."""

import sys

from clearsr.cli import main

if __name__ == "__main__":
    sys.exit(main())
