"""One module for each command, with a function of its name: options → work → exit code."""
