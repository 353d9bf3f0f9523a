"""Few-step students of fastgen as policies of LeRobot. Importing it makes `fastgen` a type of
policy."""

from .configuration_fastgen import FastgenConfig as FastgenConfig
from .modeling_fastgen import FastgenPolicy as FastgenPolicy
from .processor_fastgen import (
    make_fastgen_pre_post_processors as make_fastgen_pre_post_processors,
)
