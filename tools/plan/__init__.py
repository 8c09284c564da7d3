"""`lower-model plan`: the programs that an engine would have, and the padding to expect of them."""
