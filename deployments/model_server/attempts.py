"""Decides whether a load that failed is tried once more. PURE."""

import re
from dataclasses import dataclass

from deployments.residency import Problem

# What CUDA, torch and NVML say in a process that was forked after CUDA was touched.
_FORK_ERRORS = re.compile(r"forked subprocess|initialization error|NVMLError", re.IGNORECASE)


@dataclass
class LoadAttempts:
    """The starts of one load; a second one is made on a GPU only, where it may help.

    (1) A first load compiles, and needs more memory for it: a second one finds the kernels. (2)
    CUDA may not like the fork: a plain start replaces it.
    """

    is_gpu: bool
    is_first_load: bool  # no engine has been measured with these settings
    by_standby: bool  # fork the next engine from the standby, where one listens
    num_failed: int = 0
    fork_problem: str | None = None  # why the forked engine failed

    def may_try_again(self, problem: Problem, *, was_forked: bool) -> bool:
        """Note a failed start; whether another is worth it."""
        self.num_failed += 1
        if self.num_failed > 1 or not self.is_gpu or problem.code != "engine_ended":
            return False
        if was_forked:  # (2)
            self.by_standby, self.fork_problem = False, problem.message
        return was_forked or self.is_first_load  # (1)

    @property
    def blamed_on_fork(self) -> str | None:
        """Once the second start has succeeded: the first one's problem, if forking caused it. A
        first load may have failed for its compilation."""
        if self.fork_problem and (not self.is_first_load or _FORK_ERRORS.search(self.fork_problem)):
            return self.fork_problem
        return None
