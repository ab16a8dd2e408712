"""Hooks on the modules of a network that see and replace its attention; they leave no trace behind."""

from attention_transfer.hooks.scope import HookHandle as HookHandle
from attention_transfer.hooks.scope import Scope as Scope
from attention_transfer.hooks.scope import compiling as compiling
from attention_transfer.hooks.scope import hook_forward as hook_forward
from attention_transfer.hooks.scope import in_backward as in_backward
from attention_transfer.hooks.scope import may_run_again as may_run_again
from attention_transfer.hooks.scope import tensors_in as tensors_in
from attention_transfer.hooks.sdpa import AttentionHook as AttentionHook
from attention_transfer.hooks.sdpa import Handle as Handle
from attention_transfer.hooks.sdpa import Projections as Projections
from attention_transfer.hooks.sdpa import Site as Site
from attention_transfer.hooks.sdpa import Skipped as Skipped
from attention_transfer.hooks.sdpa import StopForward as StopForward
from attention_transfer.hooks.sdpa import attend as attend
from attention_transfer.hooks.sdpa import hook_module as hook_module
