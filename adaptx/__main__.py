"""`python -m adaptx`, the same as the command `adaptx`."""

from adaptx.cli.main import main

if __name__ == "__main__":
    main()
