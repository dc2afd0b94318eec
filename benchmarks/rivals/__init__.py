"""datafetch beside the tools that people use for the same work, on the same pictures and origin."""
