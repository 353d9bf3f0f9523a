"""Teachers: a foreign network becomes a rectified flow."""

from .conversion import (
    PREDICTIONS as PREDICTIONS,
    KeywordNetwork as KeywordNetwork,
    RectifiedFlow as RectifiedFlow,
    as_rectified_flow as as_rectified_flow,
    check_prediction as check_prediction,
    describe_network as describe_network,
    loss_space as loss_space,
    wrap_network as wrap_network,
)
