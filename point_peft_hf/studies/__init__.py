"""Studies: methods x seeds on a task, with learning rates chosen on validation and intervals over the seeds."""

from .book import RunBook, score_name, validation_score
from .plan import FewShot, PlannedRun, Study, StudyRow
from .plots import draw_report
from .report import RowSummary, final_records, study_table, summarize, validation_by_rate, write_report
from .runner import few_shot_task, rerun, run_study
from .statistics import Interval, mean_interval, paired_difference

__all__ = [
    "FewShot",
    "Interval",
    "PlannedRun",
    "RowSummary",
    "RunBook",
    "Study",
    "StudyRow",
    "draw_report",
    "few_shot_task",
    "final_records",
    "mean_interval",
    "paired_difference",
    "rerun",
    "run_study",
    "score_name",
    "study_table",
    "summarize",
    "validation_by_rate",
    "validation_score",
    "write_report",
]
