"""What checks of gradients and strategies refuse."""

from tests.refusals.row import Refusal

SETUP = """
from implicit_solvers.testing import check_implicit_gradients, problems, strategies
kepler = lambda E, M, e: E - e * torch.sin(E) - M
M, e = torch.tensor(0.5), torch.tensor(0.3)
c = torch.tensor(1 + 2j)
w = c.clone().requires_grad_()
"""
CHECKS = [
    ("3, M, (M,)", TypeError, "equation_or_layer is a int: pass a function"),
    ("kepler, M, M", TypeError, "args is a Tensor: pass a tuple, as args=(theta,)"),
    ("kepler, M, (M, e), kind='maximize'", ValueError, "kind is 'maximize': use 'root'"),
    ("kepler, M, (M, e), order=4", ValueError, "order is 4: use 1, 2 or 3"),
    ("kepler, M, (M, e), starts=-1", ValueError, "starts is -1: pass how many other starts to try"),
    ("kepler, torch.tensor(1), (M, e)", TypeError, "pass z0.to(torch.float64)"),
    ("kepler, M, (M, e), equation=kepler", ValueError, "z0 and equation are given: z0 is"),
    ("kepler, M, (M, e), parameters=[3]", TypeError, "no floating tensor at 0: pass tensors"),
    ("lambda z, M, c: z - M * c.abs(), M, (M, c)", TypeError,
     "args[1] (c) is complex (torch.complex64): check a function of its real and imaginary parts"),
    ("lambda z, M: z - M * w.abs(), M, (M,)", TypeError,
     "captured w is complex (torch.complex64): check a function of its real and imaginary"),
    ("torch.sin, None, (M,), solver=ims.Newton()", TypeError, "leave them out, or pass"),
    ("torch.sin, None, (M,), equation=lambda z, a: z.expand(2)", ValueError, "one entry for each"),
    ("ims.nn.Root(kepler), None, ()", ValueError, "args is empty: pass the inputs of the module"),
]  # fmt: skip
STRATEGIES = [
    ("well_conditioned(min_size=0)", "min_size=0, max_size=6: pass 1 <= min_size"),
    ("well_conditioned(min_size=3, max_size=2)", "min_size=3, max_size=2: pass 1 <= min_size"),
    ("positive_definite(condition=0.5)", "condition is 0.5: pass a finite number of at least 1"),
    ("positive_definite(scale=-1.0)", "scale is -1.0: pass a finite number above 0"),
    ("well_conditioned(spectrum=(1.0, 0.0))", "finite numbers, none of them zero"),
    ("well_conditioned(spectrum=())", "pass at least 1 finite numbers"),
    ("symmetric_indefinite(min_size=1)", "min_size=1, max_size=6: pass 2 <= min_size"),
    ("nonsymmetric(departure=0.0)", "departure is 0.0: pass a finite number above 0"),
    ("nonsymmetric(spectrum=(1j, math.nan))", "finite numbers, none of them zero"),
    ("banded(bandwidth=0)", "bandwidth is 0: pass a number of at least 1"),
    ("banded(spectrum=(1.0, -1.0))", "pass positive numbers"),
    ("positive_definite(spectrum=(1.0, -1.0))", "pass positive numbers"),
    ("symmetric_indefinite(spectrum=(1.0, 2.0))", "pass numbers of both signs"),
    ("rectangular(max_extra=0)", "max_extra is 0: pass a number of at least 1"),
    ("singular(min_size=0)", "min_size=0"),
    ("contractions(constant=-0.1)", "constant is -0.1: pass a finite number of at least 0"),
    ("monotone_maps(modulus=-1.0)", "modulus=-1.0"),
    ("networks(inputs=0)", "inputs=0, outputs=None, max_width=4: pass sizes of at least 1"),
    ("networks(gain=0.0)", "gain=0.0: pass a number of at least 0 and one above 0"),
    ("rooted_equations('roots')", "kind is 'roots': pass one of root, fixed_point"),
    ("rooted_equations(condition=math.inf)", "condition is inf: pass a finite number"),
    ("rootless_equations('least_squares')", "kind is 'least_squares': pass one of root"),
    ("batch_shapes(min_dims=-1)", "min_dims=-1"),
    ("parameters(max_leaves=0)", "max_leaves=0, max_side=3: pass numbers of at least 1"),
]
PROBLEMS = [
    ("ROSENBROCK.solve(start=torch.zeros(2, 2, dtype=torch.float64))", ValueError,
     "start has shape (2, 2), rosenbrock needs (2,): for many problems at once, use"),
    ("KEPLER.solve(torch.zeros(4, 2, dtype=torch.float64))", ValueError,
     "theta has shape (4, 2), kepler needs (2,): for many problems at once, use"),
    ("KEPLER.solve(start=torch.tensor(1.0, dtype=torch.float32))", TypeError,
     "fn returned torch.float64 where z0 has torch.float32: convert z0"),
]  # fmt: skip
ROWS = [
    *(Refusal(f"check_implicit_gradients({call})", *row) for call, *row in CHECKS),
    *(Refusal(f"strategies.{call}", ValueError, words) for call, words in STRATEGIES),
    *(Refusal(f"problems.{call}", *row) for call, *row in PROBLEMS),
]
