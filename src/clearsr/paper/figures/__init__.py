"""The paper's figures about the inside of a network, each with the numbers that it is drawn from."""
