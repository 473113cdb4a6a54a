"""Datasets of personal preferences, all in one record (`schema.py`)."""

# the order is that of `prlhf data list` and of the docs' table
from prlhf_kit.data import simulated, tldr, psoups, prism, compred, dsp, general, personalllm, personal, polis, files  # noqa: F401, I001
from prlhf_kit.data.registry import DATASETS as DATASETS, Report as Report
from prlhf_kit.data.check import RULES as RULES, check as check
from prlhf_kit.data.load import fingerprint as fingerprint, load as load, load_with_report as load_with_report
from prlhf_kit.data.schema import SchemaError as SchemaError
from prlhf_kit.data.select import at_most as at_most, few_shot as few_shot
