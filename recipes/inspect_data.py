"""Say what is in a data set, what would be used of it, and what is odd.

python recipes/inspect_data.py DATA                        a file or a folder
python recipes/inspect_data.py DATA actions=action observations=obs/pos,obs/vel
                                                           the columns to use, or as in a config
                                                           "observations=[a, b]"
"""

from __future__ import annotations

from fastgen.data.formats.description import describe_data
from fastgen.jobs.command_line import column_names, parse_path_and_options, user_errors

KEYS = ("actions", "observations")


def main() -> None:
    with user_errors():
        path, options = parse_path_and_options(__doc__, KEYS)
        names = {key: column_names(options, key) for key in KEYS}
        print("\n".join(describe_data(path, **names)))


if __name__ == "__main__":
    main()
