"""From finished samples to the files that the trainer reads."""
