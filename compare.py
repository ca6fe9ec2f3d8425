"""Compare runs side by side: python compare.py runs=[A,B] or backends=[legacy,areal]; --help lists the keys."""

import sys

from trainers.command.compare import main

if __name__ == "__main__":
    sys.exit(main())
