"""How a block in training form computes its branches."""

from repblocks.execution.dispatch import EXECUTIONS as EXECUTIONS
from repblocks.execution.dispatch import ROUNDED as ROUNDED
from repblocks.execution.dispatch import check_execution as check_execution
from repblocks.execution.dispatch import execute as execute
from repblocks.execution.profit import launched_for_free as launched_for_free
