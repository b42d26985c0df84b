"""Time and error of samples with gradients: the table of docs/reparameterization.md.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/reparameterization.py
    ... --tfp /path/to/python      # of an environment with tensorflow-probability and jax
    ... --compiled                 # torch.compile around this library's samples too
    ... --case gamma --rounds 3    # one case, fewer rounds

A case draws samples and differentiates their sum, in float64 on one thread. Each sample has
parameters of its own; all of a mixture share theirs. Each case has a fresh process, in which
torch's implementation and this one take turns; TensorFlow Probability (compiled by JAX) has
another. Beside mixtures of Gaussians stand the CDFs of their components at as many points, with
gradients, for torch has no such samples. Times are medians of CPU time, which other processes
change less than the clock's. Errors are the largest of ``dz/dphi`` relative to references with 60
digits, of make_grids.py of the tests, at the samples drawn; where the gradient goes through other
variables than the sample alone, there is nothing to compare.
"""

import argparse
import functools
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

from comparison import medians

CASES = {
    "gamma": "Gamma, 10⁶",
    "student_t": "StudentT, 10⁶",
    "dirichlet": "Dirichlet, 2·10⁵ × 5",
    "beta": "Beta, 10⁶",
    "von_mises": "VonMises, 10⁵",
    "truncated_normal": "TruncatedNormal, 10⁵",
    "mixture": "mixture of three StudentT, 10⁵",
    "gamma-1e5": "Gamma, 10⁵",
    "student_t-1e5": "StudentT, 10⁵",
    "beta-1e5": "Beta, 10⁵",
    "gamma-1": "Gamma, one",
    "student_t-1": "StudentT, one",
    "beta-1": "Beta, one",
    "gaussians-3": "mixture of 3 Gaussians, 10⁵",
    "gaussians-10": "mixture of 10 Gaussians, 10⁵",
    "gaussians-50": "mixture of 50 Gaussians, 10⁵",
}
POINTS = {"gamma": 300, "student_t": 300, "dirichlet": 60, "beta": 200}
POINTS |= {"von_mises": 200, "truncated_normal": 300, "mixture": 50}


# ------------------------------------------------------------------------------------ parameters


def parameters(case, scale=1.0):
    """Return numpy arrays of parameters; ``scale`` reduces their number."""
    import numpy as np

    rng = np.random.default_rng(0)
    case, _, count = case.partition("-")
    size = float(count or 1e6)

    def between(low, high, *shape):
        return low * (high / low) ** rng.random((max(1, int(shape[0] * scale)), *shape[1:]))

    return {
        "gamma": lambda: [between(0.1, 100, size)],
        "student_t": lambda: [between(0.5, 100, size)],
        "dirichlet": lambda: [between(0.1, 10, 2 * 10**5, 5)],
        "beta": lambda: [between(0.1, 100, size), between(0.1, 100, size)],
        "gaussians": lambda: [rng.normal(size=int(count)) for _ in range(3)],
        "von_mises": lambda: [between(0.1, 100, 10**5)],
        # scale, and the lower end of two
        "truncated_normal": lambda: [between(0.5, 2, 10**5), between(0.01, 10, 10**5)],
        "mixture": lambda: [
            np.array(p) for p in ([0.0, 1.0, -1.0], [1.5, 5.0, 20.0], [0.0, 2.0, 4.0])
        ],
    }[case]()


def mixture_shape(case, scale):
    return (int(1e5 * scale),) if case.startswith(("mixture", "gaussians")) else ()


# -------------------------------------------------------------------------- the implementations


def distribution(d, case, phi, one, standard=()):
    """Return what is drawn from, of a library's distributions ``d``; ``one`` is its number 1.

    ``standard`` are the location and the scale of Student's t, where they have to be said.
    """
    case = case.partition("-")[0]
    if case == "gamma":
        return d.Gamma(phi[0], one)
    if case == "student_t":
        return d.StudentT(phi[0], *standard)
    if case == "dirichlet":
        return d.Dirichlet(phi[0])
    if case == "beta":
        return d.Beta(*phi)
    if case == "von_mises":
        return d.VonMises(0 * one, phi[0])
    return d.TruncatedNormal(0 * one, phi[0], phi[1], phi[1] + 2)


def drawn(q, case):
    """Return a sample of torch's or of this library; of a vector, the first entry."""
    z = q.rsample()
    return z[..., 0] if case.startswith("dirichlet") else z


def ours(case, phi, shape=()):
    """Return a sample of this library."""
    import torch

    from implicit_solvers.problems.reparameterization import distributions as d

    one = torch.ones((), dtype=torch.float64)
    if not case.startswith(("mixture", "gaussians")):
        return drawn(distribution(d, case, phi, one), case)
    weights = torch.distributions.Categorical(logits=phi[0])
    if case.startswith("gaussians"):
        normals = torch.distributions.Normal(phi[1], phi[2].exp())
        return d.MixtureSameFamily(weights, normals).rsample(shape)
    return d.MixtureSameFamily(weights, d.StudentT(phi[1], phi[2], one)).rsample(shape)


def torchs(case, phi, shape=()):
    """Return a sample of torch itself, or the CDFs of a mixture's components."""
    import torch

    if case.startswith("gaussians"):
        z = torch.randn(shape, dtype=torch.float64).unsqueeze(-1)
        return torch.distributions.Normal(phi[1], phi[2].exp()).cdf(z)
    one = torch.ones((), dtype=torch.float64)
    return drawn(distribution(torch.distributions, case, phi, one), case)


def measure_torch(case, rounds, scale, compiled):
    """Time this library and torch by turns; return milliseconds and points of each."""
    import torch

    torch.set_num_threads(1)
    phi = [torch.from_numpy(p).requires_grad_() for p in parameters(case, scale)]
    samplers = {"ours": ours}
    if case in ("gamma", "student_t", "dirichlet", "beta"):
        samplers["torch"] = torchs
    if compiled:
        samplers["compiled"] = torch.compile(ours)

    def gradient(sampler):
        for _ in range(repeats):
            z = sampler(case, phi, mixture_shape(case, scale))
            torch.autograd.grad(z.sum(), phi, allow_unused=True)

    repeats = 100 if case.endswith("-1") else 1
    calls = {name: functools.partial(gradient, sampler) for name, sampler in samplers.items()}
    seconds = medians(calls, rounds)
    return {
        name: {"ms": 1e3 * seconds[name] / repeats, "points": points_of(case, name, sampler, phi)}
        for name, sampler in samplers.items()
    }


def points_of(case, name, sampler, phi):
    """Return parameters, samples and gradients to be compared, or None."""
    import torch

    if not comparable(case, name):
        return None
    count = POINTS[case]
    phi = [p.detach() for p in phi]
    few = [(p.expand(count, 3) if case == "mixture" else p[:count]).clone() for p in phi]
    few = [p.requires_grad_() for p in few]
    torch.manual_seed(0)
    z = sampler(case, few)
    columns = [*few, z, *torch.autograd.grad(z.sum(), few)]
    if case == "dirichlet":
        columns.append(gammas_again(few))
    return [c.tolist() for c in columns]


def comparable(case, name):
    """Return whether the gradient is a function of the sample (ours: or of known variables)."""
    if case not in POINTS:
        return False
    others = {"torch": ("gamma", "beta"), "tfp": ("gamma", "von_mises", "truncated_normal")}
    others["compiled"] = tuple(c for c in CASES if c != "dirichlet")
    return name == "ours" or case in others[name]


def gammas_again(phi):
    """Return the gamma variables from which the Dirichlet sample of the seed 0 is made."""
    import torch

    from implicit_solvers.problems.reparameterization.distributions.gamma import (
        log_gamma_variable,
    )

    torch.manual_seed(0)
    return log_gamma_variable(phi[0]).exp()


def measure_tfp(case, rounds, scale, compiled):
    """Time TensorFlow Probability on JAX; runs in another environment."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    from tensorflow_probability.substrates import jax as tfp

    d = tfp.distributions

    def sample(phi, key):
        if case != "mixture":
            z = distribution(d, case, phi, 1.0, standard=(0.0, 1.0)).sample(seed=key)
            return z[..., 0] if case == "dirichlet" else z
        components = d.StudentT(phi[1], phi[2], 1.0)
        weights = d.Categorical(logits=phi[0])
        mixture = d.MixtureSameFamily(weights, components, reparameterize=True)
        # batches of 20 are fastest: work and memory grow with the square of a batch
        keys = jax.random.split(key, mixture_shape(case, scale)[0] // 20)
        return jax.lax.map(lambda key: mixture.sample(20, seed=key), keys)

    def total(phi, key):
        z = sample(phi, key)
        return z.sum(), z

    gradient = jax.jit(jax.grad(total, has_aux=True))
    phi = [jnp.asarray(p) for p in parameters(case, scale)]
    keys = (jax.random.PRNGKey(i) for i in itertools.count())
    seconds = medians({"tfp": lambda: jax.block_until_ready(gradient(phi, next(keys)))}, rounds)
    gradients, z = gradient(phi, next(keys))
    points = None
    if comparable(case, "tfp"):
        points = [c[: POINTS[case]].tolist() for c in (*phi, z, *gradients)]
    return {"tfp": {"ms": 1e3 * seconds["tfp"], "points": points}}


# --------------------------------------------------------------------------------- the reference


@functools.cache
def grids():
    """Return the laws in many digits, of which the grids of the tests are made."""
    sys.path.append(str(Path(__file__).parents[1] / "problems" / "special_functions"))
    import make_grids

    return make_grids


def error(case, points):
    """Return the largest relative error at the points."""
    import mpmath

    with mpmath.workdps(60):
        errors = [e for point in zip(*points, strict=True) for e in REFERENCES[case](*point)]
    return float(max(errors))


def relative(value, exact):
    return abs(value - exact) / abs(exact)


def gamma_errors(a, z, slope):
    yield relative(slope, grids().gamma_row(a, z)["slope_a"])


def dirichlet_errors(a, z, slopes, gammas):
    import mpmath as mp

    share = [mp.mpf(g) / mp.fsum(gammas) for g in gammas]
    for j in range(len(a)):
        rest = mp.fsum(share[1:]) if j == 0 else -share[j]
        exact = share[0] * rest * grids().gamma_row(a[j], gammas[j])["slope_a"] / gammas[j]
        yield relative(slopes[j], exact)


def beta_errors(a, b, x, *slopes):
    if not 1e-4 < x < 1 - 1e-4:
        return  # the rounding of x would decide
    row = grids().beta_row(a, b, x)
    for slope, name in zip(slopes, ("slope_a", "slope_b"), strict=True):
        yield relative(slope, row[name])


def of_either_sign(row, place, parameter):
    """Return the CDF, the density and the slope of a variable that is symmetric around zero."""
    _, _, tail, _, density, _, slope, *_ = row(abs(place), parameter)
    return (tail, density, -slope) if place < 0 else (1 - tail, density, slope)


def student_t_errors(n, t, slope):
    yield relative(slope, of_either_sign(grids().t_row, t, n)[2])


def von_mises_errors(k, z, slope):
    yield relative(slope, of_either_sign(grids().von_mises_row, z, k)[2])


def truncated_normal_errors(s, low, z, *slopes):
    import mpmath as mp

    if not low < z < low + 2:
        return  # rounded to an end
    law, _ = grids().truncated_law(*map(mp.mpf, (z, 0, s, low)), mp.mpf(low) + 2)
    yield relative(slopes[0], law["slope_scale"])
    yield relative(slopes[1], law["slope_low"] + law["slope_high"])


def mixture_errors(logits, df, means, z, by_logits, by_df, by_means):
    import mpmath as mp

    weights = [mp.exp(mp.mpf(x)) for x in logits]
    weights = [w / mp.fsum(weights) for w in weights]
    places = [(mp.mpf(z) - mp.mpf(m), mp.mpf(n)) for m, n in zip(means, df, strict=True)]
    laws = [of_either_sign(grids().t_row, *place) for place in places]
    cdf, density, own = zip(*laws, strict=True)
    density = [w * f for w, f in zip(weights, density, strict=True)]
    whole, q = mp.fsum(w * F for w, F in zip(weights, cdf, strict=True)), mp.fsum(density)
    exact = [
        [-w * (F - whole) / q for w, F in zip(weights, cdf, strict=True)],
        [f / q * slope for f, slope in zip(density, own, strict=True)],
        [f / q for f in density],
    ]
    for values, references in zip((by_logits, by_df, by_means), exact, strict=True):
        # relative to the largest of the three: a component without a share in z has none here
        scale = max(map(abs, references))
        yield max(abs(v - r) for v, r in zip(values, references, strict=True)) / scale


REFERENCES = {
    "gamma": gamma_errors,
    "student_t": student_t_errors,
    "dirichlet": dirichlet_errors,
    "beta": beta_errors,
    "von_mises": von_mises_errors,
    "truncated_normal": truncated_normal_errors,
    "mixture": mixture_errors,
}


# -------------------------------------------------------------------------------------- the table


def in_fresh_process(python, case, library, options):
    command = [python, __file__, "--case", case, "--library", library]
    command += ["--rounds", str(options.rounds), "--scale", str(options.scale)]
    command += ["--compiled"] * options.compiled
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def table(options):
    """Print a row for each case."""
    libraries = ["ours"] + ["compiled"] * options.compiled + ["torch"] + ["tfp"] * bool(options.tfp)
    titles = {"ours": "ims", "compiled": "ims compiled", "torch": "torch", "tfp": "TFP on JAX"}
    heads = [f"{titles[n]}, {what}" for n in libraries for what in ("ms", "error")]
    print("| sample and gradient | " + " | ".join(heads) + " |")
    print("|---" * (1 + len(heads)) + "|", flush=True)
    for case in [options.case] if options.case else CASES:
        results = in_fresh_process(sys.executable, case, "torch", options)
        if options.tfp and case in POINTS:
            results |= in_fresh_process(options.tfp, case, "tfp", options)
        cells = []
        for name in libraries:
            result = results.get(name, {"ms": math.nan, "points": None})
            cells.append("–" if math.isnan(result["ms"]) else f"{result['ms']:.3g}")
            points = result["points"]
            cells.append("–" if points is None else f"{error(case, points):.0e}")
        print(f"| {CASES[case]} | " + " | ".join(cells) + " |", flush=True)


def main():
    """Print the table, or measure one case for it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="reduces the number of samples")
    parser.add_argument("--compiled", action="store_true", help="time torch.compile too")
    parser.add_argument("--tfp", metavar="PYTHON", help="an interpreter with TFP and JAX")
    parser.add_argument("--library", choices=["torch", "tfp"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library is None:
        table(options)
        return
    measure = measure_tfp if options.library == "tfp" else measure_torch
    print(json.dumps(measure(options.case, options.rounds, options.scale, options.compiled)))


if __name__ == "__main__":
    main()
