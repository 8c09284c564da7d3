"""The requests that run, as rows of numpy arrays, and the inputs of a step made from them."""
