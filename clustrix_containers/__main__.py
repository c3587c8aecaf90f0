"""``python -m clustrix_containers`` is the command line."""

from .cli import main

raise SystemExit(main())
