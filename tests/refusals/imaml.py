"""What the meta-learners refuse."""

import implicit_solvers as ims
from tests.refusals.row import Refusal

SETUP = """
import torch.nn.functional as F
from torch import nn
from implicit_solvers.problems import imaml
loss = lambda phi, x: (phi - x).square().sum()
model, theta = lambda t, x: x @ t["w"] + t["b"], {"w": torch.zeros(2, 2), "b": torch.zeros(2)}
x, y = torch.ones(3, 4, 2), torch.ones(3, 4, 2)  # three tasks, four examples each
batch = (model, F.mse_loss, theta, (x, y), (x, y))
features, labels = lambda theta, x: torch.tanh(x @ theta["w"]), torch.zeros(4, dtype=torch.int64)
work = lambda *data, **options: None
maml = lambda supports, queries: imaml.Maml().meta_gradient(*batch[:3], supports, queries)
tracked = nn.Sequential(nn.Identity(), nn.Sequential(nn.BatchNorm2d(2)))
"""

POSITIVE = "is not positive and finite: pass 2.0, say"
ENTRIES = "strength has entries that are not positive and finite: keep the tensors positive"
BAD = ("0.0", "-2.0", "math.nan", "math.inf")
NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
ROWS = [
    # the definition, and the strength
    *(Refusal(call.format(bad), ValueError, words) for bad in BAD for call, words in (
        ("imaml.adapt(loss, torch.zeros(3), torch.ones(3), strength={})", POSITIVE),
        ("imaml.Imaml({})", POSITIVE),
        ("imaml.Imaml(strength=None).extend(theta, {})", POSITIVE),
        ("imaml.Imaml(torch.tensor({})).meta_gradient(*batch)", ENTRIES),
        ("imaml.Imaml({{**theta, 'w': torch.tensor({})}}).meta_gradient(*batch)", ENTRIES),
    )),
    Refusal("imaml.Imaml({'w': torch.ones(2, 2)}).meta_gradient(*batch)", ValueError,
            "pass a number, a 0-d tensor, or a pytree like theta"),
    Refusal("imaml.Imaml(torch.ones(5)).meta_gradient(*batch)", ValueError,
            "strength has the structure *"),
    Refusal("imaml.Imaml({'w': torch.ones(3), 'b': torch.ones(2)}).meta_gradient(*batch)",
            ValueError, "strength has the shape (3,) where theta has (2, 2): pass tensors that"),
    Refusal("imaml.Imaml({'w': torch.ones(2, 2, 2), 'b': torch.ones(2)}).meta_gradient(*batch)",
            ValueError, "strength has the shape (2, 2, 2) where theta has (2, 2)"),
    Refusal("imaml.Imaml({'w': torch.ones(2, 2).long(), 'b': torch.ones(2)}).meta_gradient(*batch)",
            TypeError, "strength has torch.int64: pass a number or real floating tensors"),
    Refusal("imaml.Imaml(True).meta_gradient(*batch)", TypeError, "strength has bool: pass a num"),
    Refusal("imaml.Imaml('2.0').meta_gradient(*batch)", ValueError, "strength has the structure *"),
    Refusal("imaml.Imaml(strength=None).meta_gradient(*batch)", ValueError,
            "theta has no 'imaml.log_strength': pass extend(theta), or a strength"),
    Refusal("imaml.Imaml(torch.tensor(2.0, requires_grad=True)).meta_gradient(*batch)", ValueError,
            "pass strength=None and extend(theta) to learn it, or detach it"),
    *(Refusal(f"imaml.adapt(loss, {theta}, torch.ones(3))", TypeError,
              "pass a tensor or a pytree of tensors")
      for theta in ("{}", "{'w': 1.0}", "[torch.zeros(2), None, 'w']")),
    Refusal("imaml.adapt(lambda phi, x: phi - x, torch.zeros(3), torch.ones(3))", ValueError,
            "objective"),
    Refusal("imaml.adapt(loss, torch.zeros(2), torch.ones(2), solver=lambda f, phi: phi / 0)",
            ims.ConvergenceError, "task_objective"),
    *(Refusal(call.format(bad), ValueError,
              "is not a finite number of at least zero: pass 0.0 for none")
      for bad in ("-1e-9", "math.nan", "math.inf", "'0.1'", "torch.tensor(0.1)", "None")
      for call in ("imaml.Imaml(damping={})",
                   "imaml.adapt(loss, torch.zeros(2), torch.ones(2), damping={})")),
    *(Refusal(f"imaml.Imaml(adjoint=ims.{adjoint}())", TypeError, "pass an ImplicitAdjoint")
      for adjoint in ("UnrolledAdjoint", "OneStepAdjoint", "CG")),
    Refusal("imaml.Imaml(on_failure='keep')", ValueError,
            "on_failure='keep': pass \"raise\", \"warn\" or \"mask\", or None"),
    *(Refusal(f"imaml.neumann_adjoint({terms})", ValueError,
              f"terms={terms}: pass a positive number of terms") for terms in (0, -1, 1.0, None)),
    # the other methods
    *(Refusal(f"imaml.{kind}({lr}, 1)", ValueError, f"{kind} has lr=")
      for kind in ("Maml", "FirstOrderMaml", "Reptile")
      for lr in ("0.0", "-0.1", "math.nan", "math.inf")),
    *(Refusal(f"imaml.{kind}(0.1, {steps})", ValueError,
              f"{kind} has steps={steps}: pass a number of gradient steps, 0 or more")
      for kind in ("Maml", "FirstOrderMaml", "Reptile") for steps in (-1, 1.5)),
    *(Refusal(f"imaml.{kind}(0.1, 1, proximal={proximal})", ValueError, f"{kind} has proximal=")
      for kind in ("Maml", "FirstOrderMaml") for proximal in ("-1.0", "math.nan", "math.inf")),
    *(Refusal(f"imaml.Maml(0.1, 1, {checkpoint})", ValueError,
              f"Maml has checkpoint={checkpoint}: pass True, False, or a number of steps")
      for checkpoint in (-1, 2.5, None)),
    *(Refusal(f"imaml.unrolled_meta_loss(loss, *x[:3], **{options})", ValueError,
              "unrolled_meta_loss has")
      for options in ("dict(steps=-1, lr=0.5, strength=0.0)",
                      "dict(steps=1, lr=-0.1, strength=0.0)",
                      "dict(steps=1, lr=0.5, strength=-1.0)")),
    *(Refusal(f"imaml.Reptile(minibatch={minibatch})", ValueError,
              f"Reptile has minibatch={minibatch}: pass a number of examples, or None")
      for minibatch in (0, -2)),
    *(Refusal(f"imaml.R2D2({field}={bad})", ValueError, f"R2D2 has {field}=")
      for field in ("ridge", "scale") for bad in BAD),
    *(Refusal(f"imaml.R2D2({ways})", ValueError,
              f"R2D2 has ways={ways}: pass the number of classes, or") for ways in (1, 0, 2.0)),
    Refusal("imaml.R2D2(2).adapt(features, F.cross_entropy, theta, (x[0], y[0]))", ValueError,
            "for ways=2: pass integer classes (n,), or ways=None for regression"),
    Refusal("imaml.R2D2(2).adapt(features, F.cross_entropy, theta, (x[0], labels[:, None]))",
            ValueError, "targets are torch.int64 of shape (4, 1) for ways=2: pass"),
    Refusal("imaml.R2D2().adapt(features, F.cross_entropy, theta, (x[0], labels))", ValueError,
            "targets are torch.int64: pass ways, the number of classes"),
    Refusal("imaml.R2D2().adapt(lambda t, x: x[..., None], F.mse_loss, theta, (x[0], y[0]))",
            ValueError, "R2D2 needs features of shape (examples, features), flatten them"),
    # tasks and networks
    *(Refusal(f"imaml.{kind}().meta_gradient({arguments})", ValueError, words)
      for kind in ("Imaml", "Maml", "FirstOrderMaml", "Reptile", "R2D2") for arguments, words in (
          *((f"*batch[:3], {supports}, (x, y)", "the first dimension of each tensor is the tasks")
            for supports in ("(x[:2], y)", "(x[:2], y[:2])", "(x, torch.tensor(1.0))")),
          ("*batch[:3], (), ()", "the first dimension of each tensor is the tasks"),
          *((f"*batch, tasks_at_once={count}", f"tasks_at_once={count}: pass a positive number, or")
            for count in (0, -1, 1.5)),
          ("model, lambda out, y: F.mse_loss(out.detach(), y), *batch[2:]",
           "does not depend on theta"))
      if kind != "Reptile" or "detach" not in arguments),
    Refusal("imaml.faster_batching(work, x, y, rounds=0)", ValueError, "rounds=0"),
    Refusal("imaml.faster_batching(work, [1, 2], y)", ValueError, "supports have no tensor"),
    Refusal("imaml.functional_model(tracked)", ValueError,
            "1.0 is a BatchNorm2d that tracks running statistics, which batched tasks cannot"),
    *(Refusal(f"imaml.functional_model(nn.{name}(2))", ValueError, f"the network is a {name} that "
              "tracks running statistics, which batched tasks cannot update: pass track_running")
      for name in NORMS),
    Refusal("imaml.functional_model(nn.InstanceNorm2d(2, track_running_stats=True))", ValueError,
            "InstanceNorm2d that tracks running statistics"),
    *(Refusal(f"imaml.functional_model({network})", TypeError, "pass a torch.nn.Module")
      for network in ("F.relu", "theta", "None")),
]  # fmt: skip
