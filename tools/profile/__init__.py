"""`lower-model profile`: what the profiles of an engine say, as a table."""
