"""What tests of what a job promises share: the command as a process, and what verify finds."""

import subprocess
import sys

from combo.pipeline.jobs.unit import Job
from combo.pipeline.jobs.verify import Finding, verify_variant


def begun(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "combo", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def findings(job: Job, inputs: bool = False) -> list[Finding]:
    found = verify_variant(job.split, job.variant, job if inputs else None)
    return [each for each in found if isinstance(each, Finding)]
