"""prlhf_kit: train, steer and measure language models that answer each person as that person prefers."""

from prlhf_kit import data
from prlhf_kit.conditioning import ConditioningError, condition, load_personalized
from prlhf_kit.data import SchemaError
from prlhf_kit.decoding.generate import DecodingError, generate
from prlhf_kit.decoding.pad import GuidedAnswer, guided_generate
from prlhf_kit.models import EMBEDDED, ModelError, load_model, load_tokenizer
from prlhf_kit.training.pdpo import PersonalizedDPOConfig, PersonalizedDPOTrainer, fit, last_checkpoint
from prlhf_kit.users import GENERIC, IndividualUserModel, UserIndex

__all__ = [
    "EMBEDDED",
    "GENERIC",
    "ConditioningError",
    "DecodingError",
    "GuidedAnswer",
    "IndividualUserModel",
    "ModelError",
    "PersonalizedDPOConfig",
    "PersonalizedDPOTrainer",
    "SchemaError",
    "UserIndex",
    "condition",
    "data",
    "fit",
    "generate",
    "guided_generate",
    "last_checkpoint",
    "load_model",
    "load_personalized",
    "load_tokenizer",
]
