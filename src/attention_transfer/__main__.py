"""`python -m attention_transfer` is the command line."""

from attention_transfer.cli import main

main()
