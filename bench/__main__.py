"""Let `python -m bench` do what `bench` does."""

from bench.cli import main

raise SystemExit(main())
