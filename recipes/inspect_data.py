"""`fastgen inspect`, from a checkout: see `python recipes/inspect_data.py --help`."""

from fastgen.commands.inspect import main

if __name__ == "__main__":
    main()
