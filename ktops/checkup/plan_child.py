"""Child of the doctor: plan one model for this machine and print what matters as JSON.

A process of its own because planning imports what may be broken, and measures.
"""

from __future__ import annotations

import json
import sys

from ktops.planning.model_plan import ModelPlan, largest_fitting_model, plan_model
from ktops.settings import load_settings


def main() -> None:
    """Plan the model that the first argument names. What is raised is the caller's to read."""
    settings = load_settings()
    plan = plan_model(sys.argv[1], settings)
    facts = _facts(plan)
    if plan.served.lack is not None:
        instead = largest_fitting_model(settings, plan.machine, below_bytes=plan.facts.bytes.total)
        facts["instead"] = instead[0] if instead else None
    sys.stdout.write(json.dumps(facts) + "\n")


def _facts(plan: ModelPlan) -> dict[str, object]:
    lack = plan.served.lack
    return {
        "tokens_per_s": plan.served.decode_tokens_per_s,
        "with_all_gpus_tokens_per_s": None
        if plan.planned is plan.served
        else plan.planned.decode_tokens_per_s,
        "ram_bytes": plan.served.placement.total_bytes,
        "needed_bytes": lack.needed_bytes if lack else None,
        "there_bytes": lack.there_bytes if lack else None,
    }


if __name__ == "__main__":
    main()
