import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.skeleton import LayoutError
from skelact.skeleton.geometry import align_to, axis_vector, euler_matrix, rotate, rotation_about, yaw_matrix

component = st.floats(-3, 3, allow_nan=False, width=32)


@given(axis=st.tuples(component, component, component), angle=component)
@settings(max_examples=60, deadline=None)
def test_rotations_are_orthogonal_and_keep_their_axis(axis, angle):
    axis, angle = torch.tensor(axis, dtype=torch.float64), torch.tensor(angle, dtype=torch.float64)
    matrix = rotation_about(axis, angle)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert torch.linalg.det(matrix) == pytest.approx(1)
    torch.testing.assert_close(matrix @ axis, axis, rtol=0, atol=1e-9)


@given(vector=st.tuples(component, component, component), target=st.tuples(component, component, component))
@settings(max_examples=60, deadline=None)
def test_align_to_makes_parallel(vector, target):
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (vector, target))
    turned = align_to(a, b) @ a
    if torch.linalg.cross(a, b).abs().sum() > 1e-4:
        torch.testing.assert_close(turned / turned.norm(), b / b.norm(), rtol=0, atol=1e-6)
    assert turned.isfinite().all()


def test_align_to_leaves_what_has_no_normal():
    x = torch.tensor([1.0, 0.0, 0.0])
    for vector in (x, -x, 0 * x):
        assert torch.equal(align_to(vector, x), torch.eye(3))


def test_yaw_and_euler():
    quarter = torch.tensor(math.pi / 2)
    torch.testing.assert_close(
        yaw_matrix(quarter) @ torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        yaw_matrix(quarter, "z") @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(yaw_matrix(quarter, "-y"), yaw_matrix(-quarter), atol=1e-6, rtol=0)
    angles = torch.rand(3, 4)
    batched = euler_matrix(*angles)
    single = torch.stack([euler_matrix(*angle) for angle in angles.T])
    torch.testing.assert_close(batched, single)
    x, y = (torch.tensor(axis_vector(axis)) for axis in "xy")
    zero = torch.tensor(0.0)
    torch.testing.assert_close(euler_matrix(zero, quarter, zero) @ x, x, atol=1e-6, rtol=0)
    torch.testing.assert_close(euler_matrix(quarter, zero, zero) @ y, y, atol=1e-6, rtol=0)
    with pytest.raises(LayoutError, match="no axis 'up'"):
        yaw_matrix(quarter, "up")


def test_rotate_leaves_scores():
    points = torch.randn(2, 5, 4)
    out = rotate(points, yaw_matrix(torch.tensor(0.3)))
    assert torch.equal(out[..., 3], points[..., 3])
    torch.testing.assert_close(out[..., :3].norm(dim=-1), points[..., :3].norm(dim=-1))
