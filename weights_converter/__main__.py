"""`python -m weights_converter`: the command line."""

from weights_converter.cli import main

if __name__ == "__main__":
    main()
