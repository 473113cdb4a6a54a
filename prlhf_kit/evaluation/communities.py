"""Who is served, community by community: win rates, reward models' accuracy, and what a judge is told of who asked
(ComPO, Kumar et al. 2024, arXiv 2410.16027).

Communities are the `user_id`s. They have names, and those in a table are all that one asks about: intervals and tests
are by prompt, and say what other prompts would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from prlhf_kit.data.chat import prompt_text
from prlhf_kit.data.context import require_context
from prlhf_kit.evaluation.accuracy import LENGTH, USER_LENGTH, length_rules, ranked_right, words
from prlhf_kit.evaluation.judge_templates import earlier_choices, more_fields, read_judge_template
from prlhf_kit.evaluation.paid_answers import JudgeError
from prlhf_kit.evaluation.statistics import cluster_bootstrap, holm
from prlhf_kit.evaluation.win_rate import COMPARISON, win_rates
from prlhf_kit.models.rewards import RewardModel, Text

ALL = "all"  # communities together


def win_rates_by_community(judgements: pd.DataFrame, named: bool = True, seed: int = 0) -> pd.DataFrame:
    """Win rate of system a over b among each community, and among all ("all"): see above.

    Args:
        judgements: of `judges.judged`; its `user_id` is the community, the true one. For contextual against plain, or
            the right context against a random one, give the systems' answers those names.
        named: False: users are draws from many people, so that "all" says what other users would give as well.

    Returns:
        Rows of `win_rate.win_rates` with the column `community` in place of `users`: intervals and `p` by prompt,
        `p_holm` corrected over the communities of a comparison (of "all": `p`, since it is one test).
    """
    _require_free(judgements.user_id)
    by = [*COMPARISON, "community"]
    own = judgements.assign(community=judgements.user_id, user_id=judgements.prompt)
    together = own if named else judgements
    tables = [win_rates(own, by, seed), win_rates(together.assign(community=ALL), by, seed)]
    table = pd.concat(tables, ignore_index=True)
    table = table.drop(columns="users")
    table["p_holm"] = table.p
    for _, part in table[(table.community != ALL) & table.p.notna()].groupby(list(COMPARISON), sort=False):
        table.loc[part.index, "p_holm"] = holm(part.p.tolist())
    return table


def reward_accuracy_by_community(reward: RewardModel, pairs: Dataset, train: Dataset, seed: int = 0) -> pd.DataFrame:
    """Which of the held-out pairs a reward model ranks right, among each community and among all ("all").

    Args:
        pairs: held-out, each scored for its own `user_id`, with the prompts as they are.
        train: training pairs: from them, the length rules learn whether longer or shorter responses were chosen.

    Returns:
        Columns `method` ("reward model", `compare.LENGTH`, `compare.USER_LENGTH`), `community`, `accuracy`, `low`,
        `high` (95%, by prompt), `n`.
    """
    n, prompts, users = len(pairs), list(pairs["prompt"]), list(pairs["user_id"])
    _require_free(users)
    scores = reward.score(prompts * 2, [*pairs["chosen"], *pairs["rejected"]], users * 2).double().cpu().numpy()
    learned, gap = (words(rows["chosen"]) - words(rows["rejected"]) for rows in (train, pairs))
    rules = length_rules(train["user_id"], learned, users, gap)
    values = {"reward model": ranked_right(scores[:n], scores[n:]), LENGTH: rules[0], USER_LENGTH: rules[1]}
    asked, who = np.array([prompt_text(prompt) for prompt in prompts]), np.array(users)
    rows = []
    for method, value in values.items():
        for community in [*dict.fromkeys(users), ALL]:
            mine = (who == community) | (community == ALL)
            i = cluster_bootstrap(value[mine], asked[mine], seed=seed)
            rows.append((method, community, i.estimate, i.low, i.high, i.n))
    return pd.DataFrame(rows, columns=["method", "community", "accuracy", "low", "high", "n"])


def _require_free(users: Iterable[str]) -> None:
    if ALL in set(users):
        raise ValueError(f"a community has the name {ALL!r}, which stands for all of them. Rename it.")


def about(
    context: str, people: Mapping[str, str | None], template: str = "community", earlier: Any = ()
) -> Callable[[str | None, Text], dict[str, str]] | None:
    """What an `LLMJudge` with `template` is told of the person: its argument `about`.

    A judge is always told of who really asked, the answers' `user_id`: whatever stood in the prompt of the model that
    answered (`context_user`) is no business of the judge's.

    Args:
        context: "none" (nothing is told: for a template without further fields), "true" (field `community`: the
            user_id) or "user_text" (field `profile`: what the person says of themselves).
        people: `user_id` -> `user_text` (`data.context.people_of`).
        template: of the judge; the field `history` is filled, too, where it has it.
        earlier: pairs from which `history` is told (`judge_templates.earlier_choices`).

    Raises:
        JudgeError: "random" or "shuffled", a template with other fields, or nothing is known of a person.
        SchemaError: no context at all, such as False.
    """
    require_context(context)
    if context in ("random", "shuffled"):
        raise JudgeError(
            f"context={context!r} is for models that answer, never for judges: a judge that is told of somebody else "
            "measures what that person would like, not what the one who asked does. Use 'true', 'user_text' or 'none'."
        )
    fields = more_fields(read_judge_template(template))
    needed: set[str] = {"none": set(), "true": {"community"}, "user_text": {"profile"}}[context]
    if not needed <= fields or not fields <= {*needed, *(["history"] if needed else [])}:
        raise JudgeError(
            f"the judge's template {str(template)!r} has the further fields {sorted(fields)}; context={context!r} "
            f"fills {sorted(needed) or 'none'}{', and history' if needed else ''}. Choose a template that fits."
        )
    if context == "none":
        return None

    def known(user: str | None, prompt: Text) -> dict[str, str]:
        if user is None or user not in people or (context == "user_text" and not people[user]):
            raise JudgeError(f"nothing is known of the user {user!r}, but the judge's template {str(template)!r} asks.")
        values = {"community": user, "profile": people[user], "history": earlier_choices(earlier, user, prompt)}
        return {name: str(values[name]) for name in fields}

    return known
