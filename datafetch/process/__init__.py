"""What each process of this project needs: how it is started, how signals reach it, how it runs an event loop."""
