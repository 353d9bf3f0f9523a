"""Teachers: a foreign network becomes a rectified flow."""

from .conversion import (
    PREDICTIONS as PREDICTIONS,
    RectifiedFlow as RectifiedFlow,
    as_rectified_flow as as_rectified_flow,
    check_prediction as check_prediction,
    loss_space as loss_space,
    translated as translated,
)
from .descriptions import (
    describe_network as describe_network,
    wrap_network as wrap_network,
)
from .keywords import KeywordNetwork as KeywordNetwork
from .schedulers import read_scheduler as read_scheduler
