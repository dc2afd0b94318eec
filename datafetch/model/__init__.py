"""What all packages share: values, interfaces, and how observers are run."""
