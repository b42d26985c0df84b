"""``implicit-solvers reparam lda``: topics, with an amortized Dirichlet posterior."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from implicit_solvers.problems.experiments import harness
from implicit_solvers.problems.experiments.data.reuters import (
    Corpus,
    Documents,
    load_reuters,
    split,
)
from implicit_solvers.problems.experiments.harness import option
from implicit_solvers.problems.experiments.reparameterization.figures import (
    POSTERIOR_LABELS,
    draw_topics,
)
from implicit_solvers.problems.reparameterization.models.topic_model import (
    POSTERIORS,
    TopicModel,
    perplexity,
    unigram,
)

# There are few steps: 0.999 would remember the first gradients in a third of them.
BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Settings:
    """How a posterior is trained; chosen for each on validation documents."""

    concentration: float = option(0.3, "parameter of the Dirichlet prior of shares")
    smoothing: float = option(0.1, "words that the prior of topics adds to each count")
    lr: float = option(6e-3, "the encoder's rate in Adam")
    # each of the topics' parameters sees one word
    topics_rate: float = option(5.0, "the topics' rate relative to it")
    topic_noise: float = option(1.0, "standard deviation of the first logits of topics")
    warm_up: float = option(0.3, "share of epochs in which the divergence's weight grows to 1")
    dropout: float = option(
        0.5,
        "share of words hidden from the encoder in training",
        read=harness.number(float, 0, 1, closed=True),
    )


SETTINGS = {"dirichlet": Settings(), "logistic-normal": Settings(concentration=0.01)}


@dataclass(frozen=True)
class Configuration:
    """What the results depend on: one training for each posterior and seed."""

    posteriors: list[str] = option(list(POSTERIORS), "kinds", choices=POSTERIORS)
    seeds: int = option(3, "trainings of each posterior")
    first_seed: int = option(0, "the first of their seeds", read=harness.WHOLE)
    topics: int = option(20, "topics")
    epochs: int = option(100, "passes over the documents")
    batch: int = option(64, "documents in a step of Adam")
    hidden: int = option(100, "width of the encoder's layers")
    samples: int = option(50, "samples for the mean of a posterior")
    settings: dict[str, Settings] = field(default_factory=lambda: dict(SETTINGS))
    validation: bool = option(
        False, "leave out the test documents, and score others that are then not trained on"
    )

    def runs(self) -> list[tuple[str, int]]:
        """Return the posteriors and seeds of all trainings."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [(name, seed) for name in self.posteriors for seed in seeds]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    shown = {
        one.name: ", ".join(f"{key} {getattr(SETTINGS[key], one.name):g}" for key in POSTERIORS)
        for one in fields(Settings)
    }
    about = "Each posterior has its own, chosen on validation documents."
    harness.add_options(
        parser.add_argument_group("settings", about), Settings, shown=shown, unset=True
    )


def _run(arguments: argparse.Namespace) -> int:
    given = {one.name: getattr(arguments, one.name) for one in fields(Settings)}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = {name: replace(SETTINGS[name], **changes) for name in arguments.posteriors}
    c = harness.configuration_of(arguments, Configuration, settings=settings)
    corpus = load_reuters()
    documents = split(corpus, c.validation)
    with harness.RunFolder.of(arguments, asdict(c)) as folder:
        content = harness.train_all(
            c.runs(),
            _begin(c, documents),
            c.epochs,
            folder.checkpoint(),
            arguments.checkpoint_every,
            folder,
        )
        results = content["results"]
        topics = {
            c.runs()[place][0]: _described(c, documents, corpus, place, state)
            for place, state in content["kept"].items()
        }
        baseline = perplexity(unigram(documents.train), documents.scored)
        scores: dict[str, Any] = {"unigram": {"mean": baseline}}
        for name in c.posteriors:
            own = [result["perplexity"] for result in results if result["posterior"] == name]
            scores[name] = harness.spread(own)
        draw_topics(folder.path / "figure.png", results, baseline, topics)
        observed, scored = int(documents.observed.sum()), int(documents.scored.sum())
        metrics = {
            "perplexity": scores,
            "words": {"inferred_from": observed, "scored": scored},
            "topics": topics,
        }
        _print_results(folder.console, metrics, documents, c)
        seconds = harness.taken(results, "seconds")["seconds"]
        folder.finish({**metrics, "trainings": results}, trainings=seconds)
    return 0


def _fresh(c: Configuration, documents: Documents, name: str, seed: int) -> TopicModel:
    torch.manual_seed(seed)
    settings = c.settings[name]
    return TopicModel(
        POSTERIORS[name],
        c.topics,
        settings.concentration,
        documents.train.sum(0),
        c.hidden,
        settings.dropout,
        settings.topic_noise,
    )


def _begin(
    c: Configuration, documents: Documents
) -> Callable[[tuple[str, int], harness.State | None], harness.Training]:
    """Return how `train_all` begins a training."""

    def begin(run: tuple[str, int], state: harness.State | None) -> harness.Training:
        name, seed = run
        settings = c.settings[name]
        schedule = harness.Schedule(c.epochs, c.batch, settings.warm_up)
        model = _fresh(c, documents, name, seed)
        groups = [
            {"params": [model.topic_logits], "lr": settings.topics_rate * settings.lr},
            {"params": list(model.encoder.parameters()), "lr": settings.lr},
        ]
        optimizer = torch.optim.Adam(groups, betas=BETAS)

        def loss(batch: Tensor, weight: float) -> tuple[Tensor, Tensor]:
            likelihood, divergence = model(batch)
            # a Dirichlet prior of topics in the softmax basis: MacKay, "Choice of basis for Laplace
            # approximation" (1998)
            log_prior = settings.smoothing * model.log_topics().sum() / len(documents.train)
            value = (weight * divergence - likelihood).mean() - log_prior
            return value, likelihood - divergence

        def test() -> float:
            return _held_out(model, documents, c.samples)

        def result() -> harness.State:
            return {"posterior": name, "seed": seed, "perplexity": test()}

        return harness.Training(
            f"{POSTERIOR_LABELS[name]}, seed {seed}: held-out perplexity",
            harness.fit(model, optimizer, documents.train, loss, test, schedule, seed, state),
            result,
            kept=model if seed == c.first_seed else None,
        )

    return begin


def _held_out(model: TopicModel, documents: Documents, samples: int) -> float:
    """Return the perplexity of the scored words, given the observed ones."""
    model.eval()
    shares = model.mean_shares(documents.observed, samples)
    model.train()
    with torch.no_grad():
        return perplexity(shares @ model.log_topics().exp(), documents.scored)


def _described(
    c: Configuration, documents: Documents, corpus: Corpus, place: int, state: harness.State
) -> list[dict[str, Any]]:
    """Return the topics of a trained model, largest first: share of all words, and top words."""
    name, seed = c.runs()[place]
    model = _fresh(c, documents, name, seed)
    harness.restored(model, state).eval()
    lengths = documents.train.sum(1)
    shares = lengths @ model.mean_shares(documents.train, c.samples) / lengths.sum()
    best = model.log_topics().topk(min(10, len(corpus.words)), dim=-1).indices
    return [
        {"share": shares[topic].item(), "words": [corpus.words[word] for word in best[topic]]}
        for topic in shares.argsort(descending=True).tolist()
    ]


def _print_results(
    console: Console, metrics: Mapping[str, Any], documents: Documents, c: Configuration
) -> None:
    for name, topics in metrics["topics"].items():
        title = f"{POSTERIOR_LABELS[name]} posterior: topics of seed {c.first_seed}"
        table = Table("share", "top words", title=title, title_justify="left")
        for topic in topics:
            table.add_row(f"{100 * topic['share']:.1f}%", " ".join(topic["words"]))
        console.print(table)
    words = metrics["words"]
    kind = "validation" if c.validation else "test"
    title = (
        f"Perplexity of {words['scored']:,} words of {len(documents.scored)} {kind} documents, "
        f"given the documents' other {words['inferred_from']:,} words"
    )
    table = Table("", "perplexity", title=title, title_justify="left")
    for name, score in metrics["perplexity"].items():
        deviation = score.get("deviation")
        around = "" if deviation is None else f" ± {deviation:.0f}"
        table.add_row(POSTERIOR_LABELS[name], f"{score['mean']:.0f}{around}")
    console.print(table)


COMMAND = harness.Command(
    help="topics of the Reuters corpus with an amortized Dirichlet posterior (minutes)",
    description="Fit latent Dirichlet allocation to the Reuters corpus with amortized Dirichlet "
    "and logistic-normal posteriors; compare the perplexity of held-out documents.",
    run=_run,
    out="runs/reparam-lda",
    folder={"checkpoint_every": 10},
    configuration=Configuration,
    add_arguments=_add_arguments,
    modules=("matplotlib", "lda"),
)
