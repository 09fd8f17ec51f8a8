"""Plan, run, commit, finalise, once for every stage: only here is known what "done" means."""
