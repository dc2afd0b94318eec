"""The command line. Each command is loaded when it is run, so that help and usage errors are printed at once."""
