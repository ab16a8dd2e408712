"""Vision transformers seen from outside: capture, loading, description, students, and whether a pair fits."""

from attention_transfer.vit.capture import AttentionCall as AttentionCall
from attention_transfer.vit.capture import attention_modules as attention_modules
from attention_transfer.vit.capture import capture as capture
from attention_transfer.vit.capture import carries_gradient as carries_gradient
from attention_transfer.vit.capture import listen as listen
from attention_transfer.vit.describe import ViTSpec as ViTSpec
from attention_transfer.vit.describe import describe as describe
from attention_transfer.vit.drop_path import SharedDropPath as SharedDropPath
from attention_transfer.vit.drop_path import set_drop_path as set_drop_path
from attention_transfer.vit.indices import Indices as Indices
from attention_transfer.vit.indices import select as select
from attention_transfer.vit.load import load_vit as load_vit
from attention_transfer.vit.load import save_vit as save_vit
from attention_transfer.vit.match import TransferReport as TransferReport
from attention_transfer.vit.match import check_transfer as check_transfer
from attention_transfer.vit.replay import Replay as Replay
from attention_transfer.vit.student import initialise as initialise
from attention_transfer.vit.student import student_from as student_from
from attention_transfer.vit.student import student_like as student_like
from attention_transfer.vit.tap import TapHandle as TapHandle
from attention_transfer.vit.tap import in_backward as in_backward
from attention_transfer.vit.tap import tap as tap
