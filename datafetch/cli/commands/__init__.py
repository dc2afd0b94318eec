"""One module a command, with a function of its name: options → what to do → exit code."""
