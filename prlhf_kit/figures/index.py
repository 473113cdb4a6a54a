"""Every figure of the notebooks: file name -> (stage, its table, the function that draws it)."""

from prlhf_kit.figures import context, data, decoding, evaluation, rewards, users

FIGURES = data.FIGURES | users.FIGURES | rewards.FIGURES | decoding.FIGURES | evaluation.FIGURES | context.FIGURES
