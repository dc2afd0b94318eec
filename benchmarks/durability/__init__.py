"""Whether memory and descriptors stay bounded as runs grow longer and data grows larger."""
