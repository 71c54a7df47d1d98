"""One file per command: its flags, and a `main(argv)` that returns an exit code."""
