"""From an nn.Module, an ExportedProgram or a callable to a Program: the only room that touches torch's tracing."""
