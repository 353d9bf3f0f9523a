"""Say what is in a data set, what would be used of it, and what is odd.

python recipes/inspect_data.py DATA                        a file or a folder
python recipes/inspect_data.py DATA actions=action observations=obs/pos,obs/vel
                                                           the columns to use
"""

from __future__ import annotations

import sys

from fastgen.data.formats.description import describe_data
from fastgen.jobs.command_line import parse_options, user_errors


def main() -> None:
    with user_errors():
        arguments = sys.argv[1:]
        if not arguments or arguments[0].startswith("-") or "--help" in arguments:
            print(__doc__)
            raise SystemExit(0 if "--help" in arguments else 2)
        options = parse_options(arguments[1:], ["actions", "observations"])
        names = {key: value.split(",") for key, value in options.items()}
        print("\n".join(describe_data(arguments[0], **names)))


if __name__ == "__main__":
    main()
