"""The command line: `python -m workspace`."""

import sys

from workspace.command_line import main

if __name__ == "__main__":
    sys.exit(main())
