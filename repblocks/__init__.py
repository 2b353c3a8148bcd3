"""Train with many branches, deploy one convolution, and know that they are the same function."""
