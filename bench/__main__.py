"""The command `bench`: exit codes 0 complete (or submitted), 1 some runs failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script and of `python -m bench`."""
    import bench.cli_checkpoints
    import bench.cli_numbers
    import bench.cli_profile
    import bench.cli_share
    import bench.cli_view  # noqa: F401
    from bench.cli import app
    from bench.errors import BadInput

    try:
        app()
    except BadInput as error:
        print(str(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


if __name__ == "__main__":
    main()
