"""What every process of datafetch needs: starting a child, handling signals, and running an event loop."""
