"""Lets `python -m finetooth` do what the command `finetooth` does."""

from finetooth.cli import main

if __name__ == "__main__":
    main()
