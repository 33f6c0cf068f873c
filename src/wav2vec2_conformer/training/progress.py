"""The progress bar of a training."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

__all__ = ["ProgressBar"]


class ProgressBar(TrainerCallback):
    """Steps done, time left and the latest figures, on stderr: a bar in a terminal, a line a log elsewhere."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.figures: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                file=sys.stderr,
                dynamic_ncols=True,
                disable=not sys.stderr.isatty(),
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.bar is None or not logs:
            return
        names = {
            "contrastive": "contrastive",
            "accuracy": "accuracy",
            "eval_accuracy": "dev accuracy",
            "hard_perplexity_1": "entries 1",
            "hard_perplexity_2": "entries 2",
            "temperature": "temperature",
            "loss": "loss",
            "eval_wer": "WER",
            "eval_cer": "CER",
            "eval_macro_f1": "macro-F1",
            "eval_eer": "EER",
            "eval_der": "DER",
            "learning_rate": "lr",
            "speed": "x real time",
        }
        shown = {new: f"{logs[old]:.3g}" for old, new in names.items() if old in logs}
        self.figures |= shown
        if not shown:
            return
        if self.bar.disable:
            line = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {state.global_step}/{state.max_steps}  {line}", file=sys.stderr, flush=True)
        else:
            self.bar.set_postfix(self.figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
