"""The one exception of all that reads checkpoints."""


class CheckpointError(RuntimeError):
    """A checkpoint was refused; nothing of it was loaded."""
