"""Mathematics on tensors: no files, clocks or network."""
