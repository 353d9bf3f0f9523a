"""A student whose network torch compiles: the same samples, and the same student."""

import copy

import torch
from torch import Tensor, nn

from fastgen.export.student import Student
from support.folders import seeded

# The graph is run as it is: kernels would take a minute, and a compiler of C++.
BACKEND = "eager"


class Small(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), scale))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return (self.weight * x).tanh() + t[:, None, None] * cond.mean((1, 2), keepdim=True)


def test_a_compiled_student_samples_as_before():
    student = Student(
        Small(),
        t_list=[0.9, 0.0],
        steps=[1],
        sample_type="ode",
        pred_type="flow",
        horizon=(6, 2),
        cond_horizon=(2, 2),
        pack=2,
    )
    network = student.network
    z = torch.randn(3, 2, 2, generator=seeded(1))
    expected = student.sample(z, generator=seeded())
    assert student.compile(backend=BACKEND) is student and student.network is network
    torch.testing.assert_close(student.sample(z, generator=seeded()), expected)
    # A network that takes its place in a copy is the one that samples there.
    other = copy.copy(student)
    other.network = Small(2.0)
    assert not torch.allclose(other.sample(z, generator=seeded()), expected)
    torch.testing.assert_close(student.sample(z, generator=seeded()), expected)
