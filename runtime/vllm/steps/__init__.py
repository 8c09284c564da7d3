"""One engine step as compiled programs: inputs, the closed set of sizes, capture and passes, loading and running."""
