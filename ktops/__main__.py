"""`python -m ktops`: the same as the `ktops` command."""

from ktops.cli import main

if __name__ == "__main__":
    main()
