"""One-off jobs, schedules and pipelines: the definitions are Metronome's."""
