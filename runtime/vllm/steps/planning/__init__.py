"""Which programs an engine has: what the scheduler can ask for, what a step costs, the plan that pads least, and the proof that it suffices."""
