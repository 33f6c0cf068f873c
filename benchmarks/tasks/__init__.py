"""One module a task: `DEFAULTS` of its sweep, and `run`, which measures one case."""

from . import ctc, inference, mixed, pretraining

TASKS = {"inference": inference, "ctc": ctc, "pretraining": pretraining, "mixed": mixed}
