"""Images of any size through a network: the steps, how much is done at once, and where it lies meanwhile."""
