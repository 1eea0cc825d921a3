"""`python -m setr` is the command line."""

from setr.cli import main

raise SystemExit(main())
