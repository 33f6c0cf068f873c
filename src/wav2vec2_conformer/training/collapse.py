"""A rule that sees a pre-training collapse, and says so in plain words."""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers import TrainerCallback

__all__ = ["CollapseMonitor"]

logger = logging.getLogger(__name__)

WINDOW = 10  # logs over which a pattern must hold without a break
USED = 2.0  # effectively chosen entries of a codebook group, below which it has collapsed
CHANCE = 5.0  # times the accuracy of guessing, above which something is recognised
GAIN = 1.25  # times the accuracy of the first logs, above which it learns to
PATIENCE = 0.2  # share of the updates within which one of the two must be reached


class CollapseMonitor(TrainerCallback):
    """Stops a training whose logs show one of the known ways to fail, unless told to keep going.

    * Codebook collapse: fewer than 2 entries of a group are effectively chosen. All targets are then alike, so no
      negative counts and the loss falls for nothing.
    * Nothing is recognised: after a fifth of the updates the accuracy is near that of guessing, and no better than at
      the start. (Guessing one of K + 1 is not the whole bound: negatives with the target's codes do not count, so a
      network that always expects the most common code does better.)
    * Numbers break: the contrastive loss is not finite.

    Each must hold for 10 logs in a row.
    """

    def __init__(self, keep_going: bool = False) -> None:
        self.keep_going = keep_going
        self.diagnosis: str | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any) -> None:
        """Look at the last logs; those before an interruption are among them."""
        seen = [log for log in state.log_history if "contrastive" in log]
        if "contrastive" not in (logs or ()) or self.diagnosis is not None or len(seen) < WINDOW:
            return
        patience_over = state.global_step > PATIENCE * state.max_steps and len(seen) >= 2 * WINDOW
        found = diagnose(seen[-WINDOW:], seen[:WINDOW] if patience_over else None, model.config.num_negatives)
        if found is None:
            return
        self.diagnosis = f"update {state.global_step}: {found}"
        if self.keep_going:
            logger.warning("%s It goes on, as it was told to.", self.diagnosis)
        else:
            logger.error("%s Stopped (`--keep-going` goes on all the same).", self.diagnosis)
            control.should_training_stop = True


def diagnose(logs: list[dict[str, float]], first: list[dict[str, float]] | None, negatives: int) -> str | None:
    """What all of these logs show, and what to try; None where they show nothing.

    Args:
        logs: with `contrastive`, `accuracy` and `hard_perplexity_<group>`.
        first: those of the start, if it should be recognising something by now.
        negatives: K.
    """
    if all(not math.isfinite(log["contrastive"]) for log in logs):
        return (
            "the contrastive loss is not a finite number any more. Lower the learning rate, raise `feature_penalty`, "
            "and compute in float32 or bfloat16 instead of float16."
        )
    groups = sorted(name for name in logs[-1] if name.startswith("hard_perplexity_"))
    for group in groups:
        used = max(log[group] for log in logs)
        if used < USED:
            return (
                f"the codebook collapsed: of group {group.rsplit('_', 1)[1]} at most {used:.1f} entries were "
                f"effectively chosen in the last {len(logs)} logs, so the targets are alike and the loss says nothing. "
                "Raise `diversity_loss_weight`, lower the learning rate or lengthen the warm-up, start the temperature "
                "higher or let it fall more slowly, and listen to the recordings: silence gives one code."
            )
    if first is not None:
        before, now = (sum(log["accuracy"] for log in some) / len(some) for some in (first, logs))
        if now <= min(GAIN * before, CHANCE / (negatives + 1)):
            return (
                f"nothing is recognised: the accuracy was {now:.1%} in the last {len(logs)} logs and {before:.1%} in "
                f"the first, and guessing gives {1 / (negatives + 1):.1%}. Raise the learning rate or the seconds of "
                "audio an update, check that the recordings hold speech, and that masks are not too long for the crops."
            )
    return None
