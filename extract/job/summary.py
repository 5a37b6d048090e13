"""What became of the clips of a job."""

from __future__ import annotations

from dataclasses import dataclass, field

from manifests import quoted


@dataclass
class Summary:
    """What became of all clips.

    Attributes:
        extracted: ids of clips.
        already: those that were in the store before.
        damaged: names of the shards that were taken out as damaged.
        failed: clip id -> reason.
        not_tried: of those, that failed in an earlier run.
        left: not begun, as the job was interrupted.
        workers_without_access: what workers could not see that this machine does, one line each.
        footage: seconds of video extracted.
        seconds: wall time.
        slowest: (clip id, seconds).
        rows: of all streams, where there was something to see or hear.
        not_finite: of those, rows that are no finite numbers, and so invalid.
        not_finite_clips: clips with many such rows -> their share.
        flagged: what went wrong with clips that were extracted all the same, by the name of the
            `Flag` -> ids of the clips.
    """

    extracted: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_tried: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    workers_without_access: list[str] = field(default_factory=list)
    footage: float = 0.0
    seconds: float = 0.0
    slowest: list[tuple[str, float]] = field(default_factory=list)
    rows: int = 0
    not_finite: int = 0
    not_finite_clips: dict[str, float] = field(default_factory=dict)
    flagged: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        text = (
            f"{len(self.extracted)} extracted, {len(self.already)} already there, "
            f"{len(self.failed)} failed, {len(self.left)} left; {self.footage:.0f} s of video in "
            f"{self.seconds:.0f} s"
        )
        if self.not_finite:
            text += f"; {self.not_finite} of {self.rows} rows not finite"
        if self.slowest:
            text += f"; slowest: {self.slowest_listed()}"
        return text

    def slowest_listed(self) -> str:
        """Return the slowest clips, and how long each took."""
        return ", ".join(f"{quoted(clip_id)} {seconds:.1f} s" for clip_id, seconds in self.slowest)
