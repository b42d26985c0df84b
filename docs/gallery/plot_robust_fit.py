"""
A bounded, robust curve fit with standard errors
================================================

A fit by least squares follows every point, outliers too. A robust loss lets large residuals count for less,

.. math:: \\hat b(y) = \\arg\\min_b \\tfrac12 f^2 \\sum_i
          \\rho\\left(\\left(\\frac{m(x_i, b) - y_i}{f}\\right)^2\\right),

and is one argument here: ``loss="cauchy"``. Bounds are another: a peak has a height and a width that are positive, and
stands where its data are. The data are NIST's Eckerle4, the transmittance of an interference filter,
for which parameters and standard errors are certified to eleven digits.
"""

import json
from importlib.resources import files

import matplotlib.pyplot as plt
import torch
from torch.func import jacrev, vmap

import implicit_solvers as ims
from implicit_solvers.testing.problems.nist import MODELS

data = json.loads(files("implicit_solvers.testing.problems").joinpath("nist.json").read_text())
x, y, start, certified = (
    torch.tensor(values, dtype=torch.float64)
    for values in (
        data["eckerle4"]["x"],
        data["eckerle4"]["y"],
        data["eckerle4"]["starts"][1],
        data["eckerle4"]["certified"],
    )
)
bounds = y.new_tensor([0, 0, 400]), y.new_tensor([torch.inf, torch.inf, 500])
certified_errors = [1.5408051163e-02, 4.6803020753e-02, 4.6800518816e-02]


def residuals(b, y):
    return MODELS["eckerle4"](b, x) - y


def fit(y, **loss):
    return ims.least_squares(residuals, start, (y,), bounds=bounds, **loss).value


# %%
# Standard errors, two ways
# -------------------------
#
# The textbook's, which NIST certifies, are those of :math:`s^2 (J^\top J)^{-1}`. The implicit derivative
# :math:`\partial\hat b/\partial y = H^{-1} J^\top` has the full Hessian :math:`H`, that of the adjoint: where residuals are small,
# both agree.

b = fit(y)
s = (residuals(b, y).square().sum() / (len(x) - len(b))).sqrt()
J = jacrev(residuals)(b, y)
textbook = s * torch.linalg.inv(J.T @ J).diagonal().sqrt()
implicit = s * jacrev(fit)(y).norm(dim=1)
print("     fit             certified       (JᵀJ)⁻¹ s²      certified       full Hessian")
for row in zip(b, certified, textbook, certified_errors, implicit, strict=True):
    print("  ", "".join(f"{float(value):<16.9g}" for value in row))

# %%
# Outliers
# --------
#
# Four points are moved. Least squares goes along with them; Cauchy's loss, with residuals in units of five standard
# deviations of the noise, stays within two standard errors of the certified parameters.

spoiled = y.clone()
moved = torch.tensor([8, 15, 20, 26])
spoiled[moved] += torch.tensor([0.15, -0.12, 0.2, 0.1], dtype=y.dtype)
robust = {"loss": "cauchy", "f_scale": 5 * float(s)}
fits = {"least squares": fit(spoiled), "Cauchy's loss": fit(spoiled, **robust)}
for name, found in fits.items():
    off = (found - certified) / torch.tensor(certified_errors)
    print(f"{name}:", " ".join(f"{value:+.1f}" for value in off.tolist()), "standard errors off")

# %%
# The derivative of the robust fit says what each point does to it: an outlier, next to nothing. The noise of the others
# makes its standard errors, and a thousand fits to new noise, at once by ``vmap``, show that they are right.

influence = jacrev(lambda y: fit(y, **robust))(spoiled)
errors = s * influence.norm(dim=1)
noise = s * torch.randn(1000, len(x), dtype=y.dtype, generator=torch.Generator().manual_seed(0))
center = MODELS["eckerle4"](fits["Cauchy's loss"], x)
outliers = torch.zeros_like(y).index_put((moved,), (spoiled - y)[moved])
spread = vmap(lambda noise: fit(center + outliers + noise, **robust))(noise).std(0)
for name, error, seen in zip(("b1", "b2", "b3"), errors, spread, strict=True):
    print(f"{name}: {float(error):.4f} by the derivative, {float(seen):.4f} seen")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
fine = torch.linspace(float(x[0]), float(x[-1]), 400, dtype=y.dtype)
left.plot(x, spoiled, ".", color="0.5", label="data")
left.plot(x[moved], spoiled[moved], "x", color="tab:red", label="outliers")
for name, found in fits.items():
    left.plot(fine, MODELS["eckerle4"](found, fine), label=name)
left.set(xlabel="wavelength (nm)", title="transmittance", xlim=(425, 480))
left.legend()
plain = jacrev(fit)(spoiled)
for name, row, color in (("least squares", plain, "C0"), ("Cauchy's loss", influence, "C1")):
    right.plot(x, row[2], ".-", color=color, label=name)
    right.plot(x[moved], row[2, moved], "x", color="tab:red")
right.set(xlabel="wavelength (nm)", title="∂(position of the peak)/∂y", xlim=(425, 480))
right.legend()
plt.show()
