"""Win rates against the numbers of P-RLHF's evaluation.

Its rules treat ties in other ways than the kit, for which a tie is one half, of samples as of users. So its numbers are
compared on verdicts that are rewritten until both rules say the same.
"""

import pandas as pd
import pytest

from authors.golden import golden
from prlhf_kit.evaluation.intervals import intervals
from prlhf_kit.evaluation.win_rate import user_win_rates, win_rates, with_wins

GOLD = golden("win_rates.json")


def table(verdicts):
    rows = []
    for number, (user, verdict) in enumerate(verdicts):
        rows.append({"user_id": f"u{user}", "prompt": f"p{number}", "preference": verdict})
    return pd.DataFrame(rows).assign(judge="j", system_a="A", system_b="B")


def ties_as(case, *verdicts):
    """The case's verdicts with each tie replaced by `verdicts`."""
    told = []
    for user, verdict in GOLD[case]["verdicts"]:
        told += [(user, new) for new in (verdicts if verdict == "tie" else [verdict])]
    return table(told)


@pytest.mark.parametrize("case", list(GOLD))
def test_ties_are_halves(case):
    """Worked out by the kit's own rule from the same verdicts."""
    wanted, judgements = GOLD[case]["halves_rule"], table(GOLD[case]["verdicts"])
    assert win_rates(judgements).win_rate.item() == pytest.approx(wanted["per_sample"], abs=1e-12)
    [users] = user_win_rates(judgements).to_dict("records")
    assert users["user_win_rate"] == pytest.approx(wanted["per_user"], abs=1e-12)
    assert [users["users_won"], users["users_lost"], users["users_tied"]] == wanted["users_won_lost_tied"]


@pytest.mark.parametrize("case", list(GOLD))
def test_prism_rule_per_sample(case):
    """The authors count a tie as a win and as a loss, so it weighs as much as two samples."""
    wanted = GOLD[case]["authors_prism"]
    [samples] = win_rates(table(GOLD[case]["verdicts"])).to_dict("records")
    shares = [samples["win"], samples["loss"], samples["tie"]]
    assert [round(samples["n"] * share, 9) for share in shares] == wanted["win_lose_tie"]
    found = win_rates(ties_as(case, "a", "b")).win_rate.item()
    assert found == pytest.approx(wanted["per_sample"], abs=1e-12)


@pytest.mark.parametrize("case", list(GOLD))
def test_prism_rule_per_user(case):
    """Among a user's samples a tie is a win. Users at one half count as won in the authors' rate."""
    wanted = GOLD[case]["authors_prism"]
    [users] = user_win_rates(ties_as(case, "a")).to_dict("records")
    assert [users["users_won"], users["users_lost"], users["users_tied"]] == wanted["users_won_lost_tied"]
    rate = users["user_win_rate"] + users["users_tied"] / users["n"] / 2
    assert rate == pytest.approx(wanted["per_user"], abs=1e-12)


@pytest.mark.parametrize("case", list(GOLD))
def test_psoups_rule(case):
    """A tie is a loss; the mean and its standard error are over users."""
    wanted = GOLD[case]["authors_psoups"]
    found = intervals(with_wins(ties_as(case, "b")), "win_rate", ["user_id"], "prompt")
    number = found.user_id.str.removeprefix("u").astype(int)
    rates = found.win_rate.iloc[number.argsort()]
    assert rates.tolist() == pytest.approx(wanted["per_user"], abs=1e-12)
    assert rates.mean() == pytest.approx(wanted["mean_over_users"], abs=1e-12)
    assert rates.sem(ddof=0) == pytest.approx(wanted["standard_error"], abs=1e-12)
