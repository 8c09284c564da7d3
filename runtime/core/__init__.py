"""Runtime core: signatures, bundles and executables on a PJRT device. A leaf: imports neither torch nor vLLM, nor any other floor."""
