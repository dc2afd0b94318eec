"""The codec alone, and what handing images to codec processes costs."""
