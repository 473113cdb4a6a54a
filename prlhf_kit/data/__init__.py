"""Datasets of personal preferences, all in one record (`schema.py`)."""

# the order is that of `prlhf data list` and of the docs' table
from prlhf_kit.data import simulated, tldr, psoups, prism, compred, dsp, general, personalllm, polis, files  # isort: skip
from prlhf_kit.data.cards import DATASETS, Report
from prlhf_kit.data.check import RULES, check
from prlhf_kit.data.load import fingerprint, load, load_with_report
from prlhf_kit.data.schema import SchemaError
from prlhf_kit.data.select import at_most, few_shot

__all__ = [
    "DATASETS",
    "RULES",
    "Report",
    "SchemaError",
    "at_most",
    "check",
    "compred",
    "dsp",
    "few_shot",
    "files",
    "fingerprint",
    "general",
    "load",
    "load_with_report",
    "personalllm",
    "prism",
    "psoups",
    "simulated",
    "tldr",
]
