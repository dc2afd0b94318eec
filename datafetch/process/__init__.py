"""What every process of datafetch needs: child processes, signals, an event loop, and settings of its allocators."""
