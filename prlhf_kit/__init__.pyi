"""The names of `import prlhf_kit as kit`, and where each comes from: the only list of them (`__init__.py` reads it)."""

from prlhf_kit import data as data
from prlhf_kit.decoding.generate import (
    DecodingError as DecodingError,
    generate as generate,
)
from prlhf_kit.decoding.guided import GuidedDecoder as GuidedDecoder
from prlhf_kit.decoding.guides import (
    ARGS as ARGS,
    PAD as PAD,
)
from prlhf_kit.decoding.respond import respond as respond
from prlhf_kit.evaluation.intervals import (
    as_metrics as as_metrics,
    differences as differences,
    intervals as intervals,
    long_table as long_table,
)
from prlhf_kit.evaluation.judges import (
    Oracle as Oracle,
    RewardJudge as RewardJudge,
    judged as judged,
)
from prlhf_kit.evaluation.llm_judge import LLMJudge as LLMJudge
from prlhf_kit.evaluation.outside import read_answers as read_answers
from prlhf_kit.models.conditioning import (
    ConditioningError as ConditioningError,
    condition as condition,
)
from prlhf_kit.models.embedded import ModelError as ModelError
from prlhf_kit.models.hub import (
    load_model as load_model,
    load_tokenizer as load_tokenizer,
)
from prlhf_kit.models.publish import push_to_hub as push_to_hub
from prlhf_kit.models.reward_model import new_reward_model as new_reward_model
from prlhf_kit.models.rewards import (
    best_of_n as best_of_n,
    load_reward as load_reward,
)
from prlhf_kit.models.saving import (
    load_personalized as load_personalized,
    save_personalized as save_personalized,
)
from prlhf_kit.models.user_index import UserIndex as UserIndex
from prlhf_kit.models.user_models import (
    ClusterUserModel as ClusterUserModel,
    IndividualUserModel as IndividualUserModel,
    LowRankUserModel as LowRankUserModel,
)
from prlhf_kit.runs.stage import begin as begin
from prlhf_kit.training.config import PersonalizedDPOConfig as PersonalizedDPOConfig
from prlhf_kit.training.new_users import (
    adapt as adapt,
    add_users as add_users,
)
from prlhf_kit.training.pdpo import PersonalizedDPOTrainer as PersonalizedDPOTrainer
