"""``python -m clustrix_containers`` is the command line."""

from clustrix_containers.cli import main

raise SystemExit(main())
