"""What a judge is told of the community that asked (ComPO, Kumar et al. 2024, arXiv 2410.16027)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prlhf_kit.data.context import require_context
from prlhf_kit.evaluation.judge_templates import earlier_choices, more_fields, read_judge_template
from prlhf_kit.evaluation.paid_answers import JudgeError
from prlhf_kit.models.rewards import Text


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
