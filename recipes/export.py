"""`fastgen export`, from a checkout: see `python recipes/export.py --help`."""

from fastgen.commands.export import main

if __name__ == "__main__":
    main()
