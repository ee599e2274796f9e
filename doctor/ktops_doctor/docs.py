"""docs/doctor.md, written from the checks themselves."""

from __future__ import annotations

from itertools import groupby

from ktops_doctor.checks import all_checks

_HEAD = """\
# ktops doctor

<!-- Written by `python -m ktops_doctor.docs`; a test fails when it is not current. -->

`ktops doctor` asks whether this machine can serve a model, and names the fix for what is in the
way. The thresholds are those of the model: the one that `--model` names, else the default of the
settings, else `r1-q4km`; for RAM the bytes of `ktops plan` on this machine, where it can plan, else
what the catalogue says. It runs on Python's standard library, asks everything heavy in child
processes, and so finishes when torch, CUDA or the native library is broken. Where a package that
the command line needs is missing or broken, the doctor alone still runs, and says so.

| mark | meaning |
|---|---|
| ok | as the model needs it |
| warn | works, and something is lost: the line says what |
| FAIL | the model cannot be served like this |
| skip | the question does not arise here, or waits for another check |
| CRASH | the check itself failed or took too long; the others are not affected |

The report ends with what this machine can do with the model: the speed that `ktops plan` expects,
or the memory that is missing and a model that fits. [Live runs](doctor-runs.md) show whole reports.

Exit codes: 0 no failure (with `--strict`: and no warning), 1 a check or a repair failed, 2 usage,
3 a check crashed.

```
ktops doctor                          # this machine and the default model
ktops doctor --model demo             # a model without a GPU
ktops doctor --only gpu,mem.total     # by topic or id; --skip likewise
ktops doctor --list-checks            # ids and titles
ktops doctor --deep                   # also what takes long
ktops doctor --fix                    # mend what can be mended; asks first
ktops doctor -q                       # the ids that fail
ktops doctor --json                   # for a program
```

## Repairs

`--fix` does what is safe and can be undone, and nothing else. It shows every command and the line
that takes it back, asks on a terminal (`--yes` elsewhere, `--dry-run` only shows), runs them, asks
the checks again, and lists what is left to you because it needs root or judgement. A repair that
fails is told with its reason, and the command exits with 1.

- lib.glibcxx: conda's newer libstdc++; without conda, a link to the system's, the old file kept
  beside it.
- lib.native, lib.glibc, numa.build, mem.bandwidth: `ktops build`, which writes only ktops' cache.
- py.packages: `pip install` of what is missing or old; undone to the versions that were there.
- py.imports: the same versions once more.
"""


def render_docs() -> str:
    """The whole page: an introduction, then every check under its section."""
    lines = [_HEAD.rstrip()]
    for section, group in groupby(all_checks(), key=lambda check: check.section):
        lines += ["", f"## {section.value}"]
        for check in group:
            lines += ["", f"### {check.id}", "", f"**{check.title}.** {check.why}"]
            if check.deep:
                lines += ["", "Only with `--deep`, or when it is named."]
            if check.needs:
                needs = ", ".join(f"[{need}](#{need.replace('.', '')})" for need in check.needs)
                lines += ["", f"Skipped unless {needs} came out well."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page to standard output."""
    import sys

    sys.stdout.write(render_docs())


if __name__ == "__main__":
    main()
