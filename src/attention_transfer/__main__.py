"""`python -m attention_transfer` is the command line."""

from attention_transfer.cli import main

if __name__ == "__main__":
    main()
