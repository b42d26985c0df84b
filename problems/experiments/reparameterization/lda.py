"""``implicit-solvers reparam lda``: topics, with an amortized Dirichlet posterior."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from implicit_solvers.problems.experiments.data.reuters import Corpus, load_reuters
from implicit_solvers.problems.experiments.harness.options import positive, positive_integer, whole
from implicit_solvers.problems.experiments.harness.run_folder import (
    CheckpointError,
    load_checkpoint,
    write_json,
)
from implicit_solvers.problems.experiments.harness.training import (
    Schedule,
    Training,
    fit,
    train_all,
)
from implicit_solvers.problems.experiments.reparameterization.lda_figure import LABELS, draw_figure
from implicit_solvers.problems.experiments.reparameterization.topic_model import (
    POSTERIORS,
    TopicModel,
    halves,
    perplexity,
    unigram,
)

__all__ = ["add_arguments", "run"]

# Every fifth document is a test document, the one after it is for the choice of settings; the words
# of both are split with this seed: not what varies.
TEST_EVERY = 5
SPLIT_SEED = 0
# There are few steps: 0.999 would remember the first gradients in a third of them.
BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Settings:
    """How a posterior is trained; chosen for each on validation documents.

    Parameters
    ----------
    concentration
        Of the Dirichlet prior of shares.
    smoothing
        Words that the prior of topics adds to each count.
    lr
        The encoder's rate in Adam.
    topics_rate
        The topics' rate relative to it: each of their parameters sees one word.
    topic_noise
        The standard deviation of the first logits of topics.
    warm_up
        The share of epochs in which the divergence's weight grows to 1.
    dropout
        The share of words hidden from the encoder in training.
    """

    concentration: float
    smoothing: float = 0.1
    lr: float = 6e-3
    topics_rate: float = 5.0
    topic_noise: float = 1.0
    warm_up: float = 0.3
    dropout: float = 0.5


SETTINGS = {
    "dirichlet": Settings(concentration=0.3),
    "logistic-normal": Settings(concentration=0.01),
}


@dataclass(frozen=True)
class Configuration:
    """What the results depend on: one training for each posterior and seed."""

    posteriors: list[str] = field(default_factory=lambda: list(POSTERIORS))
    seeds: int = 3
    first_seed: int = 0
    topics: int = 20
    epochs: int = 100
    batch: int = 64
    hidden: int = 100
    samples: int = 50
    settings: dict[str, Settings] = field(default_factory=lambda: dict(SETTINGS))
    validation: bool = False

    def runs(self) -> list[tuple[str, int]]:
        """Return the posteriors and seeds of all trainings."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [(name, seed) for name in self.posteriors for seed in seeds]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    default = Configuration()
    add = parser.add_argument
    add("--posteriors", nargs="+", choices=list(POSTERIORS), default=default.posteriors)
    numbers = {
        "seeds": (positive_integer, "trainings of each posterior"),
        "first_seed": (whole, "the first of their seeds"),
        "topics": (positive_integer, "topics"),
        "epochs": (positive_integer, "passes over the documents"),
        "batch": (positive_integer, "documents in a step of Adam"),
        "hidden": (positive_integer, "width of the encoder's layers"),
        "samples": (positive_integer, "samples for the mean of a posterior"),
    }
    for name, (kind, text) in numbers.items():
        value = getattr(default, name)
        option = "--" + name.replace("_", "-")
        add(option, type=kind, default=value, metavar="N", help=f"{text} (%(default)s)")
    group = parser.add_argument_group(
        "settings", "Each posterior has its own, chosen on validation documents."
    )
    settings: dict[str, tuple[Callable[[str], float], str]] = {
        "concentration": (positive, "parameter of the Dirichlet prior of shares"),
        "smoothing": (positive, "words that the prior of topics adds to each count"),
        "lr": (positive, "the encoder's rate in Adam"),
        "topics_rate": (positive, "the topics' rate relative to it"),
        "topic_noise": (positive, "standard deviation of the first logits of topics"),
        "warm_up": (positive, "share of epochs in which the divergence's weight grows to 1"),
        "dropout": (_probability, "share of words hidden from the encoder in training"),
    }
    for name, (number, text) in settings.items():
        chosen = ", ".join(f"{key} {getattr(SETTINGS[key], name):g}" for key in POSTERIORS)
        option = "--" + name.replace("_", "-")
        group.add_argument(option, type=number, metavar="N", help=f"{text} ({chosen})")
    add(
        "--validation",
        action="store_true",
        help="leave out the test documents, and score others that are then not trained on",
    )
    out = Path("runs/reparam-lda")
    add("--out", type=Path, default=out, help="folder of the results (%(default)s)")
    add("--resume", action="store_true", help="go on from the checkpoint in that folder")
    add(
        "--checkpoint-every",
        type=positive_integer,
        default=10,
        metavar="N",
        help="epochs from one checkpoint to the next (%(default)s)",
    )


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


@dataclass(frozen=True, eq=False)
class Documents:
    """The corpus, split: counts to train on, held-out words to infer from and to score."""

    train: Tensor
    observed: Tensor
    scored: Tensor


def split(corpus: Corpus, validation: bool = False) -> Documents:
    """Hold out every fifth document, and split its words into halves.

    Parameters
    ----------
    corpus
        The documents.
    validation
        Whether to leave out the test documents, and hold out every fifth document of another kind:
        settings are chosen on these.
    """
    fold = torch.arange(len(corpus.counts)) % TEST_EVERY
    held_out = fold == int(validation)
    observed, scored = halves(corpus.counts[held_out], SPLIT_SEED)
    train = corpus.counts[fold > int(validation)]
    return Documents(*(part.to(torch.float32) for part in (train, observed, scored)))


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    configuration = _configuration(arguments)
    out: Path = arguments.out
    console = Console()
    try:
        corpus = load_reuters()
        out.mkdir(parents=True, exist_ok=True)
        path = out / "checkpoint.pt"
        checkpoint = load_checkpoint(path, asdict(configuration)) if arguments.resume else None
    except (CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(out / "config.json", asdict(configuration))
    documents = split(corpus, configuration.validation)
    try:
        with torch.random.fork_rng(devices=[]):
            content = train_all(
                configuration.runs(),
                _begin(configuration, documents),
                asdict(configuration),
                path,
                checkpoint,
                arguments.checkpoint_every,
                console,
            )
            topics = {
                configuration.runs()[number][0]: _described(
                    configuration, documents, corpus, number, state
                )
                for number, state in content["kept"].items()
            }
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on", file=sys.stderr)
        return 130
    baseline = perplexity(unigram(documents.train), documents.scored)
    results = content["results"]
    with console.status("drawing the figure"):
        draw_figure(out / "figure.png", results, baseline, topics)
    timing = {
        "total": time.perf_counter() - start,
        "trainings": [result.pop("seconds") for result in results],
    }
    metrics = {
        "perplexity": {"unigram": {"mean": baseline}, **_summary(results, configuration)},
        "words": {
            "inferred_from": int(documents.observed.sum()),
            "scored": int(documents.scored.sum()),
        },
        "topics": topics,
        "trainings": results,
        "timing": timing,
    }
    write_json(out / "metrics.json", metrics)
    _print_results(console, metrics, documents, configuration)
    console.print(f"{timing['total']:.0f} s. Results and figure are in {out}.")
    return 0


def _configuration(arguments: argparse.Namespace) -> Configuration:
    given = vars(arguments)
    names = [name for name in Configuration.__dataclass_fields__ if name in given]
    changes = {n: given[n] for n in Settings.__dataclass_fields__ if given[n] is not None}
    settings = {name: replace(SETTINGS[name], **changes) for name in arguments.posteriors}
    return Configuration(**{name: given[name] for name in names}, settings=settings)


def _fresh(configuration: Configuration, documents: Documents, name: str, seed: int) -> TopicModel:
    torch.manual_seed(seed)
    settings = configuration.settings[name]
    return TopicModel(
        POSTERIORS[name],
        configuration.topics,
        settings.concentration,
        documents.train.sum(0),
        configuration.hidden,
        settings.dropout,
        settings.topic_noise,
    )


def _begin(
    configuration: Configuration, documents: Documents
) -> Callable[[tuple[str, int], dict[str, Any] | None], Training]:
    """Return how `train_all` begins a training."""

    def begin(run: tuple[str, int], state: dict[str, Any] | None) -> Training:
        name, seed = run
        settings = configuration.settings[name]
        schedule = Schedule(configuration.epochs, configuration.batch, settings.warm_up)
        model = _fresh(configuration, documents, name, seed)
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
            return _held_out(model, documents, configuration.samples)

        def result() -> dict[str, Any]:
            return {"posterior": name, "seed": seed, "perplexity": test()}

        return Training(
            f"{LABELS[name]}, seed {seed}: held-out perplexity",
            fit(model, optimizer, documents.train, loss, test, schedule, seed, state),
            result,
            kept=model if seed == configuration.first_seed else None,
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
    configuration: Configuration,
    documents: Documents,
    corpus: Corpus,
    number: int,
    state: dict[str, Tensor],
) -> list[dict[str, Any]]:
    """Return the topics of a trained model, largest first: share of all words, and top words."""
    name, seed = configuration.runs()[number]
    model = _fresh(configuration, documents, name, seed)
    model.load_state_dict(state)
    model.eval()
    lengths = documents.train.sum(1)
    shares = lengths @ model.mean_shares(documents.train, configuration.samples) / lengths.sum()
    best = model.log_topics().topk(min(10, len(corpus.words)), dim=-1).indices
    return [
        {"share": shares[topic].item(), "words": [corpus.words[word] for word in best[topic]]}
        for topic in shares.argsort(descending=True).tolist()
    ]


def _summary(
    results: Sequence[Mapping[str, Any]], configuration: Configuration
) -> dict[str, dict[str, float | None]]:
    """Return mean and standard deviation over seeds of the held-out perplexity."""
    summary = {}
    for name in configuration.posteriors:
        values = [result["perplexity"] for result in results if result["posterior"] == name]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        summary[name] = {"mean": statistics.mean(values), "deviation": deviation}
    return summary


def _print_results(
    console: Console,
    metrics: Mapping[str, Any],
    documents: Documents,
    configuration: Configuration,
) -> None:
    for name, topics in metrics["topics"].items():
        title = f"{LABELS[name]} posterior: topics of seed {configuration.first_seed}"
        table = Table("share", "top words", title=title, title_justify="left")
        for topic in topics:
            table.add_row(f"{100 * topic['share']:.1f}%", " ".join(topic["words"]))
        console.print(table)
    words = metrics["words"]
    kind = "validation" if configuration.validation else "test"
    title = (
        f"Perplexity of {words['scored']:,} words of {len(documents.scored)} {kind} documents, "
        f"given the documents' other {words['inferred_from']:,} words"
    )
    table = Table("", "perplexity", title=title, title_justify="left")
    for name, score in metrics["perplexity"].items():
        deviation = score.get("deviation")
        spread = "" if deviation is None else f" ± {deviation:.0f}"
        table.add_row(LABELS[name], f"{score['mean']:.0f}{spread}")
    console.print(table)
