"""Where the numbers of a run go: metrics.jsonl, which is the record, and trackers, which are views."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

from elpo.training.run_folder import Phase, RunFolder
from elpo.training.trackers import Tracker


class MetricsLog:
    """Appends metrics to a run folder and shows them in trackers. Use as a context manager, so that these are
    closed.

    `after` is the (phase, step) of the checkpoint a run continues from: whatever the folder holds of
    later steps is dropped, so that its metrics end up the uninterrupted run's. None starts empty.

    A tracker that raises is warned of and left out from then on: hours of training do not end because a view
    of them does.
    """

    def __init__(
        self,
        folder: RunFolder,
        trackers: Sequence[Tracker] = (),
        *,
        after: tuple[Phase, int] | None = None,
    ) -> None:
        self._folder = folder
        self._trackers = list(trackers)
        if after is None:
            folder.truncate_metrics()
        else:
            folder.truncate_metrics(*after)

    def log(self, phase: Phase, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step, and show those that are finite.

        Raises:
            RunFolderError: if metrics.jsonl cannot be written, for example on a full disk.
        """
        self._folder.append_metrics(phase, step, metrics)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._tell(lambda tracker: tracker.log(phase, step, finite))

    def close(self) -> None:
        """Let every tracker write what it holds back."""
        self._tell(lambda tracker: tracker.close())
        self._trackers.clear()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                what(tracker)
            except Exception as error:  # each raises its own
                self._trackers.remove(tracker)
                warnings.warn(
                    f"{type(tracker).__name__} failed and is left out from here on; the run goes on, and "
                    f"{self._folder.metrics_file} has every number: {type(error).__name__}: {error}",
                    stacklevel=3,
                )
