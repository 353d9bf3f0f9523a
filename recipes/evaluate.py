"""`fastgen evaluate`, from a checkout: see `python recipes/evaluate.py --help`."""

from fastgen.commands.evaluate import main

if __name__ == "__main__":
    main()
