"""What data sets refuse."""

from tests.refusals.row import alike

SETUP = """
from pathlib import Path
from implicit_solvers.problems.experiments.data.adding import generate_adding
from implicit_solvers.problems.experiments.data.class_images import ClassImages
from implicit_solvers.problems.experiments.data.copying import generate_copying
from implicit_solvers.problems.experiments.data.episodes import Episodes, split_classes
from implicit_solvers.problems.experiments.data.glyphs import load_glyphs, render_instances
from implicit_solvers.problems.experiments.data.glyphs import rasterize
from implicit_solvers.problems.experiments.data.mini_imagenet import load_mini_imagenet
from implicit_solvers.problems.experiments.data.omniglot import load_omniglot
from implicit_solvers.problems.experiments.data.pixel_sequences import *
from implicit_solvers.problems.experiments.data.seglearn_watch import load_watch
from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask
from implicit_solvers.problems.experiments.data.sequences import held_out, pad
from implicit_solvers.problems.experiments.data.sinusoid import Sinusoids
from implicit_solvers.problems.experiments.data.speech_commands import log_mel
images = torch.zeros(12, 7, 1, 3, 3)
unequal = [torch.zeros(4, 1), torch.zeros(2, 1), torch.zeros(5, 1)]
bar = load_glyphs({("a", "-"): [[(0, 0), (8, 0)]]})
x, lengths, y = torch.zeros(2, 3, 1), torch.tensor([3, 2]), torch.zeros(2, 1)
gap = torch.tensor([[[0.0], [0], [0]], [[0], [math.nan], [0]]])
part = Sequences(x, lengths, y)
labelled = Sequences(x, lengths, torch.tensor([[0], [2]]))
wider = Sequences(torch.zeros(2, 3, 4), lengths, y)
series = lambda *shapes: [np.ones(shape) for shape in shapes]
"""
KIND, WRONG = TypeError, ValueError
# fmt: off
# an exception, words, and calls; in pairs, with what fills the gaps of the words
TABLE = [
    # sizes
    (WRONG, "{} is not positive: pass 1 or more",
     ("Episodes(images, ways=0, shots=1, queries=3)", "ways=0"),
     ("Episodes(images, ways=4, shots=-1, queries=3)", "shots=-1"),
     ("Episodes(images, ways=4, shots=1, queries=0)", "queries=0"),
     ("render_instances(bar, torch.tensor([0]), 0, torch.Generator())", "instances=0"),
     ("rasterize(bar.points, bar.pen_down, torch.tensor([0.1]), 0)", "resolution=0"),
     ("load_omniglot(Path('omniglot'), side=0)", "side=0"),
     ("load_mini_imagenet(Path('images'), side=0)", "side=0"),
     ("Sinusoids(shots=0, queries=1)", "shots=0"), ("Sinusoids(shots=1, queries=0)", "queries=0"),
     ("generate_copying(0, 1, 1, 1)", "delay=0"), ("generate_copying(1, 1, 1, 0)", "test=0"),
     ("load_watch(0)", "window=0")),
    (WRONG, "fold=5 is not one from 0 to 4", "load_watch(fold=5)"),
    (WRONG, "steps=8 leaves no room for noise: pass more", "load_noise_padded_digits(8)"),
    (WRONG, "{} is negative: pass 0 or more",
     ("Episodes(images, ways=4, shots=1, queries=3, seed=-2)", "seed=-2"),
     ("Sinusoids(shots=1, queries=1, seed=-1)", "seed=-1")),
    # episodes
    (WRONG, "ways=13 is more than the 12 classes of images: lower ways",
     "Episodes(images, ways=13, shots=1, queries=3)"),
    (WRONG, "images has 7 instances of each class, fewer than shots + queries = 5 + 3: lower",
     "Episodes(images, ways=4, shots=5, queries=3)"),
    (WRONG, "class 1 of images has 2 instances, fewer than shots + queries = 1 + 2",
     "Episodes(unequal, ways=2, shots=1, queries=2)"),
    (WRONG, "the class b has 2 instances", "Episodes(unequal, 2, 1, 2, names=['a', 'b', 'c'])"),
    (WRONG, "names has 2 names for 3 classes", "Episodes(unequal, 2, 1, 2, names=['a', 'b'])"),
    *((WRONG, f"tasks={tasks} is empty or has a negative number: pass 0",
     f"Episodes(images, 4, 1, 3).batch({tasks})") for tasks in ("[]", "[3, -1]", "range(0, 0)")),
    (WRONG, "make parts of [2, 0, 1] classes: pass positive frac", "split_classes(3)"),
    (WRONG, "train=0.9, validation=0.2 make parts of [90, 20, -10] classes",
     "split_classes(100, train=0.9, validation=0.2)"),
    (WRONG, "2 classes have 1 different names", "ClassImages([images[0], images[0]], ['a', 'a'])"),
    # glyphs and folders of images
    *((WRONG, f"strokes[('a', 'b')] = {empty} has no points: leave it out",
     f"load_glyphs({{('a', 'b'): {empty}}})") for empty in ("[]", "[[]]", "[[(0, 0)], []]")),
    (WRONG, "split='letters' is unknown: pass 'characters' or 'alphabets'",
     "load_omniglot(Path('omniglot'), split='letters')"),
    # generated tasks
    (WRONG, "tasks=[] is empty or has a negative number", "Sinusoids(1, 1).batch([])"),
    (WRONG, "has a negative number: pass 0 or more", "Sinusoids(1, 1).batch([0, -1])"),
    (WRONG, "steps=1, train=1", "generate_adding(1, 1, 1, 1)"),
    (WRONG, "validation=0, test=1: pass at least two", "generate_adding(5, 1, 0, 1)"),
    (WRONG, "channels={} does not divide the 64 pixels",
     ("load_digit_sequences(0)", "0"), ("load_digit_sequences(7)", "7")),
    # sequences
    (KIND, "x is torch.float64: pass", "Sequences(x.double(), lengths, y)"),
    (KIND, "lengths is torch.float32: pass", "Sequences(x, lengths.float(), y)"),
    (WRONG, "must have three, one and two dimensions", "Sequences(x[..., 0], lengths, y)"),
    (WRONG, "2, 2 and 3 sequences", "Sequences(x, lengths, torch.zeros(3, 1))"),
    (WRONG, "y (2, 0) is empty: pass", "Sequences(x, lengths, torch.zeros(2, 0))"),
    (WRONG, "x (2, 0, 1) or y (2, 1)", "Sequences(torch.zeros(2, 0, 1), lengths, y)"),
    (WRONG, "is empty: pass at least one sequence", "Sequences(x[:0], lengths[:0], y[:0])"),
    (WRONG, "is empty: pass at least one", "part.subset(torch.tensor([False, False]))"),
    (WRONG, "sequence 1 has the length 0", "Sequences(x, torch.tensor([3, 0]), y)"),
    (WRONG, "sequence 0 has the length 4", "Sequences(x, torch.tensor([4, 1]), y)"),
    (WRONG, "not one from 3 (the output", "Sequences(x, lengths, torch.zeros(2, 3))"),
    (WRONG, "1 of 2 sequences have a NaN or infinite value (the first is number 1): leave them",
     "Sequences(gap, lengths, y)"),
    (WRONG, "(the first is number 0): leave them out, or fill the gaps",
     "Sequences(x, lengths, torch.tensor([[math.inf], [0]]))"),
    (WRONG, "channels of train, validation and test differ", "SequenceTask(part, part, wider, ())"),
    (WRONG, "types of y", "SequenceTask(part, labelled, part, ())"),
    (WRONG, "pass int64 classes with names, or float32 values",
     "SequenceTask(part, part, part, ('a',))", "SequenceTask(labelled, labelled, labelled, ())"),
    (WRONG, "classes from 0 to 2, with 2 names: number them from 0",
     "SequenceTask(labelled, labelled, labelled, ('a', 'b'))"),
    (WRONG, "there is no series: pass at least one", "pad([])"),
    (WRONG, "series 1 has the shape (0, 1): pass (le", "pad(series((2, 1), (0, 1)))"),
    (WRONG, "series 1 has the shape (2, 2): pass (le", "pad(series((2, 1), (2, 2)))"),
    (WRONG, "series 0 has the shape (2,): pass (length", "pad(series((2,)))"),
    (WRONG, "every=1 holds all out", "held_out(torch.zeros(3, dtype=torch.int64), 1)"),
    (WRONG, "pass one channel of at least 400", "log_mel(torch.zeros(399))"),
]
# fmt: on
ROWS = [row for group in TABLE for row in alike(*group)]
