"""ATen ops in terms of other ATen ops: the table that capture traces through, and the decompositions of our own."""
