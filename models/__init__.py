"""Networks of the published methods, one file each, and the face geometry they share."""

from models._checkpoints import CheckpointError, import_state_dict, load_checkpoint

__all__ = ["CheckpointError", "import_state_dict", "load_checkpoint"]
