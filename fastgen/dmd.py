"""Distribution matching: the pipeline of losses, the samples it makes and its fake score."""

from .methods.dmd import DMDPipeline as DMDPipeline
from .methods.fake_scores import (
    RungConditioned as RungConditioned,
    create_fake_score as create_fake_score,
)
from .methods.rollouts import Generated as Generated
