"""`python -m pillm` is `pillm`."""

from pillm.cli.main import main

raise SystemExit(main())
