"""The figure of latent Dirichlet allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from implicit_solvers.problems.experiments.imaml.demo_figure import BLUE, GREY, ORANGE, STYLE

__all__ = ["LABELS", "draw_figure"]

LABELS = {
    "unigram": "unigram",
    "dirichlet": "Dirichlet",
    "logistic-normal": "logistic-normal",
}
COLOURS = {"dirichlet": BLUE, "logistic-normal": ORANGE}
TOPICS, WORDS = 12, 7


def draw_figure(
    path: Path,
    results: Sequence[Mapping[str, Any]],
    baseline: float,
    topics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Draw the held-out perplexity of each epoch, and the largest topics of the first posterior.

    Parameters
    ----------
    path
        Where the image goes.
    results
        Each with ``posterior``, ``seed`` and the ``test`` curve.
    baseline
        The unigram model's perplexity.
    topics
        For each posterior, topics with ``share`` and ``words``, largest first.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        named = set()
        for result in results:
            name, curve = result["posterior"], result["test"]
            label = None if name in named else f"{LABELS[name]} posterior, each seed"
            named.add(name)
            left.plot(range(1, len(curve) + 1), curve, color=COLOURS[name], lw=1.3, label=label)
        left.axhline(baseline, color=GREY, ls="--", lw=1.2, label="unigram")
        left.set(title="Held-out perplexity", xlabel="epochs", ylabel="perplexity of scored words")
        left.legend()
        name, largest = next(iter(topics.items()))
        for row, topic in enumerate(largest[:TOPICS]):
            share = 100 * topic["share"]
            right.barh(row, share, color=COLOURS[name], alpha=0.3)
            words = " ".join(topic["words"][:WORDS])
            right.text(0.3, row, words, va="center", fontsize=8.5)
        right.set_ylim(min(TOPICS, len(largest)) - 0.4, -0.6)
        right.set_yticks([])
        right.spines["left"].set_visible(False)
        right.grid(False)
        right.set(title=f"Largest topics, {LABELS[name]} posterior", xlabel="share of all words, %")
        figure.savefig(path, dpi=100)
