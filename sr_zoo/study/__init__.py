"""The study: every claim about discovered kernels as a measurement with nulls and intervals, on any pair."""

from sr_zoo.study.pipeline import STAGES, Plan, make_plan, open_archive, run_study
from sr_zoo.study.settings import Settings, StudyError, full_settings, quick_settings
from sr_zoo.study.subject import Sources, Subject, open_subject

__all__ = [
    "STAGES",
    "Plan",
    "Settings",
    "Sources",
    "StudyError",
    "Subject",
    "full_settings",
    "make_plan",
    "open_archive",
    "open_subject",
    "quick_settings",
    "run_study",
]
