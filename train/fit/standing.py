"""How a run stands on dev: which weights are kept, and whether it still gets better."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Standing:
    """What a run's validations have said so far.

    Attributes:
        kept: dev AUC and step of the weights to keep, the best first; of equals the latest, which
            have learned longest.
        misses: validations since dev AUC last rose.
        validated: the last step that was validated; 0: none.
    """

    kept: list[tuple[float, int]] = field(default_factory=list)
    misses: int = 0
    validated: int = 0

    def add(self, step: int, dev_auc: float, *, keep: int) -> None:
        """Take in a validation; `keep` weights stay."""
        risen = not self.kept or dev_auc > self.kept[0][0]
        self.misses = 0 if risen else self.misses + 1
        self.validated = step
        self.kept = sorted([*self.kept, (dev_auc, step)], reverse=True)[:keep]

    def is_best(self, step: int) -> bool:
        """Whether the best weights are those of a step."""
        return bool(self.kept) and self.kept[0][1] == step

    def stale(self, patience: int | None) -> bool:
        """Whether dev AUC has not risen for so many validations."""
        return patience is not None and self.misses >= patience

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"kept": self.kept, "misses": self.misses, "validated": self.validated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.kept = [(float(auc), int(step)) for auc, step in state["kept"]]
        self.misses, self.validated = state["misses"], state["validated"]
