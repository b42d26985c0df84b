"""What networks on equilibrium manifolds refuse."""

from tests.refusals.row import Refusal

SETUP = """
from torch.nn.utils.rnn import pack_sequence
from implicit_solvers.problems.ernn import *
from implicit_solvers.problems.ernn.baselines import *
net, cell = ERNN(2, 3).double(), ERNNCell(2, 3).double()
def dropping(kind, **options):
    drops = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Dropout())
    return kind(2, 3, nonlinearity=Nonlinearity(drops, slope=2.0), **options)
x, h0 = torch.zeros(4, 2, 2).double(), torch.zeros(2, 3).double()
"""

ROWS = [
    Refusal("ERNN(0, 3)", ValueError, "input_size=0"),
    Refusal("ERNN(2, -1)", ValueError, "hidden_size=-1"),
    Refusal("ERNN(2, 2.0)", ValueError, "hidden_size=2.0"),
    Refusal("ERNN(2, 3, num_layers=0)", ValueError, "num_layers=0"),
    Refusal("ERNN(2, 3, num_layers=True)", ValueError, "num_layers=True"),
    Refusal("ERNN(2, 3, dropout=1.5)", ValueError, "dropout=1.5"),
    Refusal("ERNN(2, 3, dropout=True)", ValueError, "dropout=True"),
    Refusal("ERNN(2, 3, mode='equilibrium')", TypeError, "pass Equilibrium() or Unrolled(steps=3)"),
    Refusal("ERNN(2, 3, gamma=0.0)", ValueError, "gamma=0.0"),
    Refusal("ERNN(2, 3, gamma=math.nan)", ValueError, "gamma=nan"),
    Refusal("ERNN(2, 3, nonlinearity='sin')", ValueError, 'pass "tanh", "relu", "sigmoid"'),
    Refusal("ERNN(2, 3, nonlinearity=torch.sin)", TypeError, "Nonlinearity"),
    Refusal("ERNN(2, 3, nonlinearity=[1])", TypeError, "Nonlinearity"),
    Refusal("Nonlinearity(torch.sin, slope=0.0)", ValueError, "slope=0.0"),
    Refusal("ERNN(2, 3, well_posed='norm')", TypeError, "pass SpectralNorm(), Monotone()"),
    Refusal("ERNN(2, 3, rank=4)", ValueError, "rank=4 is not between 1 and hidden_size=3"),
    Refusal("ERNN(2, 3, rank=1, well_posed=Monotone())", ValueError, "rank=1 with Monotone()"),
    Refusal("ERNN(2, 3, input_rank=3)", ValueError, "input_rank=3 is not between 1 and 2"),
    Refusal("ERNN(2, 3, initial_norm=1.0)", ValueError, "0.95"),
    Refusal("ERNN(2, 3, initial_norm=-0.1)", ValueError, "initial_norm=-0.1"),
    Refusal("ERNN(2, 3, leak=(math.nan, 1.0))", ValueError, "leak has a=nan"),
    Refusal("Leak(1.0, math.inf)", ValueError, "b=inf"),
    Refusal("Unrolled(steps=0)", ValueError, "steps=0"),
    Refusal("Unrolled(steps=True)", ValueError, "steps=True"),
    Refusal("Unrolled(step_size=-1.0)", ValueError, "step_size=-1.0"),
    Refusal("Equilibrium(block=0)", ValueError, "block=0"),
    Refusal("Equilibrium(on_failure='ignore')", ValueError, 'use "raise", "warn" or "mask"'),
    Refusal("ERNN(2, 3, leak=LEAKY, mode=Equilibrium(parallel=True))", ValueError, "fix a = b"),
    *(
        Refusal(f"{call}({margin})", ValueError, f"margin={shown}")
        for call in ("SpectralNorm", "Monotone", "cell.project_")
        for margin, shown in [("0.0", 0.0), ("1.0", 1.0), ("-1.0", -1.0), ("math.nan", "nan")]
    ),
    Refusal("net(torch.zeros(4, 2, 3).double())", ValueError, "pass (time, batch, 2)"),
    Refusal("net(x[0, 0])", ValueError, "input has the shape (2,)"),
    Refusal("net(x.unsqueeze(2))", ValueError, "input has the shape (4, 2, 1, 2)"),
    Refusal("net(x.float())", TypeError, "input is torch.float32"),
    Refusal("net(x.long())", TypeError, "input is torch.int64"),
    Refusal("net([[1.0, 2.0]])", TypeError, "input is a list"),
    Refusal("net(x[:0])", ValueError, "(0, 2, 2), sequences of length 0: leave them out"),
    Refusal("net(x[:0, 0])", ValueError, "sequences of length 0"),
    Refusal("net(x, h0)", ValueError, "hx has the shape (2, 3) where (1, 2, 3) is needed"),
    Refusal("net(x[:, 0], h0[None, :1])", ValueError, "hx has the shape"),
    Refusal("net(x, h0[None].float())", TypeError, "hx is torch.float32"),
    Refusal("net(pack_sequence([x[:, :, :1]]))", ValueError, "input packs data of the shape"),
    Refusal("net(pack_sequence([x[0].float()]))", TypeError, "input is torch.float32"),
    Refusal("dropping(ERNN)(x.float())", ValueError, "as ERNN(..., dropout=0.5), on the input"),
    Refusal("dropping(ERNN, leak=LEAKY)(x.float())", ValueError, "has no equilibrium"),
    Refusal("dropping(ERNNCell)(x[0].float())", ValueError, "training mode (1)"),
    Refusal("cell(torch.zeros(4, 3).double())", ValueError, "(4, 3): pass (batch, 2)"),
    Refusal("cell(x)", ValueError, "input has the shape"),
    Refusal("cell(x[0].float())", TypeError, "input is torch.float32"),
    Refusal("cell(x[0], h0[0])", ValueError, "hx has the shape (3,) where (2, 3) is needed"),
    Refusal("cell(x[0], h0.float())", TypeError, "hx is torch.float32"),
    Refusal("cell(None)", TypeError, "input is a NoneType"),
    Refusal("FastRNN(2, 3, alpha=math.inf)", ValueError, "alpha=inf is not finite: pass a logit"),
    Refusal("FastRNNCell(2, 3, beta=math.nan)", ValueError, "beta=nan is not finite"),
    Refusal("AntisymmetricRNN(2, 3, diffusion=-1.0)", ValueError, "diffusion=-1.0 is negative"),
    Refusal("AntisymmetricRNNCell(2, 3, step_size=0.0)", ValueError, "step_size=0.0"),
    Refusal("FastRNN(0, 3)", ValueError, "input_size=0"),
    Refusal("FastRNN(2, 3, mode=Unrolled())", TypeError, "mode"),
    Refusal("ImplicitEulerRNN(2, 3, step_size=0.0)", ValueError, "step_size=0.0 is not positive"),
    Refusal("ImplicitEulerRNN(2, 3, step_size=math.nan)", ValueError, "step_size=nan"),
    Refusal("ImplicitEulerRNN(2, 3, step_size=math.inf)", ValueError, "step_size=inf"),
    Refusal("ImplicitEulerRNN(2, 3, mode=Unrolled())", TypeError, "pass an Equilibrium"),
    Refusal("ImplicitEulerRNN(2, 3, initial_norm=9.0)", ValueError, "initial_norm=9.0"),
]
