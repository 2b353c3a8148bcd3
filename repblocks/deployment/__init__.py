"""Write a trained network as files that run without its branches, each proven before it appears."""
