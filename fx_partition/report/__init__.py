"""Plans for readers: text, Markdown, JSON."""
from fx_partition.passes.plan import Plan


def render(plan: Plan, format: str = "text") -> str:
    return plan.to_json()
def report(*a): ...
