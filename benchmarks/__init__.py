"""What datafetch costs and how fast it is, measured on this machine."""
