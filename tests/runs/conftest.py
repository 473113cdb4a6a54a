"""A record as a completed stage leaves it."""

RECORD = {
    "schema": 1,
    "status": "completed",
    "parameters": {"seed": 0, "alpha": 0.5},
    "metrics": {"accuracy": 0.75},
    "artifacts": {},
    "versions": dict.fromkeys(("python", "prlhf_kit", "torch", "transformers", "trl"), "1"),
    "git": {"commit": "a9319a1f12fa1a9b8263350214f7b4d97ed3c563", "dirty": False},
    "started": "2026-11-21T06:39:20+00:00",
}
