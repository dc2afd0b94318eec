"""The command line. Each command is loaded when it is run, so that help and errors come at once."""
