"""`fastgen sample`, from a checkout: see `python recipes/sample.py --help`."""

from fastgen.commands.sample import main

if __name__ == "__main__":
    main()
