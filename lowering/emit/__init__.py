"""From a Program to StableHLO: one op after the other, by its rule."""
