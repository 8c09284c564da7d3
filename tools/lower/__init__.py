"""The command `lower-model`, one file per job: request, models in, stages, sizes, output, what is shown."""
