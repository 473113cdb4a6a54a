"""Win rates by three rules, against the numbers of P-RLHF's evaluation and the kit's own rule worked out by hand."""

import pandas as pd
import pytest

from authors.golden import golden
from prlhf_kit.evaluation.win_rate import user_win_rates, win_rates

GOLD = golden("win_rates.json")
CASES = pytest.mark.parametrize("case", list(GOLD))


def table(case):
    rows = [{"user_id": f"u{user}", "preference": verdict} for user, verdict in GOLD[case]["verdicts"]]
    return pd.DataFrame(rows).assign(judge="j", system_a="A", system_b="B", prompt=[f"p{i}" for i in range(len(rows))])


@CASES
@pytest.mark.parametrize(("rule", "whose"), [("halves", "halves_rule"), ("prlhf", "authors_prism")])
def test_ties_as_halves_and_as_wins(case, rule, whose):
    wanted, [found] = GOLD[case][whose], user_win_rates(table(case), rule).to_dict("records")
    assert found["user_win_rate"] == pytest.approx(wanted["per_user"], abs=1e-12)
    assert found["sample_win_rate"] == pytest.approx(wanted["per_sample"], abs=1e-12)
    assert [found["users_won"], found["users_lost"], found["users_tied"]] == wanted["users_won_lost_tied"]


@CASES
def test_ties_as_losses(case):
    wanted, won = GOLD[case]["authors_psoups"], user_win_rates(table(case), "psoups")
    assert won.user_win_rate.item() == pytest.approx(wanted["mean_over_users"], abs=1e-12)
    users = [user_win_rates(own, "psoups").user_win_rate.item() for _, own in table(case).groupby("user_id")]
    assert sorted(users) == pytest.approx(sorted(wanted["per_user"]), abs=1e-12)
    assert pd.Series(users).sem(ddof=0) == pytest.approx(wanted["standard_error"], abs=1e-12)


@CASES
def test_win_rates_of_samples(case):
    [samples] = win_rates(table(case)).to_dict("records")
    assert samples["win_rate"] == pytest.approx(GOLD[case]["halves_rule"]["per_sample"], abs=1e-12)
    shares = [samples["n"] * samples[name] for name in ("win", "loss", "tie")]
    assert shares == pytest.approx(GOLD[case]["authors_prism"]["win_lose_tie"])


@pytest.mark.parametrize(
    ("rule", "user", "sample"), [("halves", 0.64, 0.556), ("prlhf", 0.84, 0.544), ("psoups", 0.43, 0.419)]
)
def test_the_same_verdicts_by_each_rule(rule, user, sample):
    found = user_win_rates(table("simulated"), rule)
    assert found[["user_win_rate", "sample_win_rate"]].round(3).values.tolist() == [[user, sample]]
