"""`python -m fastgen` is the command `fastgen`."""

from .commands.main import main

if __name__ == "__main__":
    main()
