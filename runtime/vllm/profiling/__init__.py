"""A profile of serving: how long each part of each step takes, as a trace that Perfetto opens, and its summary."""
