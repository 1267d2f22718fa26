"""Networks of the published methods, one file each, and the face geometry they share.

What other packages may use is imported from here: `from models import InputSpec, crop_faces`. The
modules with a leading underscore are private to this package (import-linter says so). Each name's
module is loaded when the name is first asked for, so that a program which needs a schema does not
load PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models._backbones import load_imagenet_encoders
    from models._calibration import KNOTS, Calibration
    from models._checkpoints import (
        CheckpointError,
        import_checkpoint,
        import_state_dict,
        load_checkpoint,
        packed_weights,
        save_weights,
    )
    from models._contract import (
        ATTACK,
        BONA_FIDE,
        AdaptableModel,
        AttackModel,
        DistilledModel,
        FaceBatch,
        InputSpec,
        Layout,
        Method,
        Publication,
        RefinedModel,
        StagedModel,
        StagedStudent,
        TwoPassModel,
    )
    from models._files import file_sha256, whole_file
    from models._log_odds import logit, sigmoid
    from models._precision import in_float32, mapped_tensors, to_half
    from models._preprocess import CropWindow, box_in_crop, crop_faces, crop_window
    from models._registry import build_model, load_method, method_names
    from models._settings import Setting, lay_over, one_line

__all__ = [
    "ATTACK",
    "BONA_FIDE",
    "KNOTS",
    "AdaptableModel",
    "AttackModel",
    "Calibration",
    "CheckpointError",
    "CropWindow",
    "DistilledModel",
    "FaceBatch",
    "InputSpec",
    "Layout",
    "Method",
    "Publication",
    "RefinedModel",
    "Setting",
    "StagedModel",
    "StagedStudent",
    "TwoPassModel",
    "box_in_crop",
    "build_model",
    "crop_faces",
    "crop_window",
    "file_sha256",
    "import_checkpoint",
    "import_state_dict",
    "in_float32",
    "lay_over",
    "load_checkpoint",
    "load_imagenet_encoders",
    "load_method",
    "logit",
    "mapped_tensors",
    "method_names",
    "one_line",
    "packed_weights",
    "save_weights",
    "sigmoid",
    "to_half",
    "whole_file",
]

_HOMES = {
    "_backbones": ("load_imagenet_encoders",),
    "_calibration": ("KNOTS", "Calibration"),
    "_checkpoints": (
        "CheckpointError",
        "import_checkpoint",
        "import_state_dict",
        "load_checkpoint",
        "packed_weights",
        "save_weights",
    ),
    "_contract": (
        "ATTACK",
        "BONA_FIDE",
        "AdaptableModel",
        "AttackModel",
        "DistilledModel",
        "FaceBatch",
        "InputSpec",
        "Layout",
        "Method",
        "Publication",
        "RefinedModel",
        "StagedModel",
        "StagedStudent",
        "TwoPassModel",
    ),
    "_files": ("file_sha256", "whole_file"),
    "_log_odds": ("logit", "sigmoid"),
    "_precision": ("in_float32", "mapped_tensors", "to_half"),
    "_preprocess": ("CropWindow", "box_in_crop", "crop_faces", "crop_window"),
    "_registry": ("build_model", "load_method", "method_names"),
    "_settings": ("Setting", "lay_over", "one_line"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(import_module(f"models.{_HOME_OF[name]}"), name)
