"""What data sets refuse."""

from tests.refusals.row import Refusal

SETUP = """
from pathlib import Path
from implicit_solvers.problems.data.adding import generate_adding
from implicit_solvers.problems.data.class_images import ClassImages
from implicit_solvers.problems.data.copying import generate_copying
from implicit_solvers.problems.data.episodes import Episodes, split_classes
from implicit_solvers.problems.data.glyphs import load_glyphs, rasterize, render_instances
from implicit_solvers.problems.data.mini_imagenet import load_mini_imagenet
from implicit_solvers.problems.data.omniglot import load_omniglot
from implicit_solvers.problems.data.pixel_sequences import load_digit_sequences
from implicit_solvers.problems.data.seglearn_watch import load_watch
from implicit_solvers.problems.data.sequences import Sequences, SequenceTask, held_out, pad
from implicit_solvers.problems.data.sinusoid import Sinusoids
from implicit_solvers.problems.data.speech_commands import log_mel
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

ROWS = [
    # episodes
    Refusal("Episodes(images, ways=0, shots=1, queries=3)", ValueError,
            "ways=0 is not positive: pass 1 or more"),
    Refusal("Episodes(images, ways=4, shots=-1, queries=3)", ValueError,
            "shots=-1 is not positive: pass 1 or more"),
    Refusal("Episodes(images, ways=4, shots=1, queries=0)", ValueError,
            "queries=0 is not positive: pass 1 or more"),
    Refusal("Episodes(images, ways=4, shots=1, queries=3, seed=-2)", ValueError,
            "seed=-2 is negative: pass 0 or more"),
    Refusal("Episodes(images, ways=13, shots=1, queries=3)", ValueError,
            "ways=13 is more than the 12 classes of images: lower ways"),
    Refusal("Episodes(images, ways=4, shots=5, queries=3)", ValueError,
            "images has 7 instances of each class, fewer than shots + queries = 5 + 3: lower"),
    Refusal("Episodes(unequal, ways=2, shots=1, queries=2)", ValueError,
            "class 1 of images has 2 instances, fewer than shots + queries = 1 + 2"),
    Refusal("Episodes(unequal, 2, 1, 2, names=['a', 'b', 'c'])", ValueError,
            "the class b has 2 instances"),
    Refusal("Episodes(unequal, 2, 1, 2, names=['a', 'b'])", ValueError,
            "names has 2 names for 3 classes"),
    *(Refusal(f"Episodes(images, 4, 1, 3).batch({tasks})", ValueError,
              f"tasks={tasks} is empty or has a negative number: pass 0")
      for tasks in ("[]", "[3, -1]", "range(0, 0)")),
    Refusal("split_classes(3)", ValueError, "make parts of [2, 0, 1] classes: pass positive frac"),
    Refusal("split_classes(100, train=0.9, validation=0.2)", ValueError,
            "train=0.9, validation=0.2 make parts of [90, 20, -10] classes"),
    Refusal("ClassImages([images[0], images[0]], ['a', 'a'])", ValueError,
            "2 classes have 1 different names"),
    # glyphs and folders of images
    Refusal("render_instances(bar, torch.tensor([0]), 0, torch.Generator())", ValueError,
            "instances=0 is not positive"),
    Refusal("rasterize(bar.points, bar.pen_down, torch.tensor([0.1]), 0)", ValueError,
            "resolution=0 is not positive"),
    *(Refusal(f"load_glyphs({{('a', 'b'): {empty}}})", ValueError,
              f"strokes[('a', 'b')] = {empty} has no points: leave it out")
      for empty in ("[]", "[[]]", "[[(0, 0)], []]")),
    Refusal("load_omniglot(Path('omniglot'), side=0)", ValueError, "side=0 is not positive"),
    Refusal("load_omniglot(Path('omniglot'), split='letters')", ValueError,
            "split='letters' is unknown: pass 'characters' or 'alphabets'"),
    Refusal("load_mini_imagenet(Path('images'), side=0)", ValueError, "side=0 is not positive"),
    # generated tasks
    Refusal("Sinusoids(shots=0, queries=1)", ValueError, "shots=0 is not positive"),
    Refusal("Sinusoids(shots=1, queries=0)", ValueError, "queries=0 is not positive"),
    Refusal("Sinusoids(shots=1, queries=1, seed=-1)", ValueError, "seed=-1 is negative"),
    Refusal("Sinusoids(1, 1).batch([])", ValueError, "tasks=[] is empty or has a negative number"),
    Refusal("Sinusoids(1, 1).batch([0, -1])", ValueError, "has a negative number: pass 0 or more"),
    Refusal("generate_adding(1, 1, 1, 1)", ValueError, "steps=1, train=1"),
    Refusal("generate_adding(5, 1, 0, 1)", ValueError, "validation=0, test=1: pass at least two"),
    Refusal("generate_copying(0, 1, 1, 1)", ValueError, "delay=0 is not positive"),
    Refusal("generate_copying(1, 1, 1, 0)", ValueError, "test=0 is not positive"),
    Refusal("load_digit_sequences(0)", ValueError, "channels=0 does not divide the 64 pixels"),
    Refusal("load_digit_sequences(7)", ValueError, "channels=7 does not divide the 64 pixels"),
    # sequences
    Refusal("Sequences(x.double(), lengths, y)", TypeError, "x is torch.float64: pass"),
    Refusal("Sequences(x, lengths.float(), y)", TypeError, "lengths is torch.float32: pass"),
    Refusal("Sequences(x[..., 0], lengths, y)", ValueError,
            "must have three, one and two dimensions"),
    Refusal("Sequences(x, lengths, torch.zeros(3, 1))", ValueError, "2, 2 and 3 sequences"),
    Refusal("Sequences(x, lengths, torch.zeros(2, 0))", ValueError, "y (2, 0) is empty: pass"),
    Refusal("Sequences(torch.zeros(2, 0, 1), lengths, y)", ValueError, "x (2, 0, 1) or y (2, 1)"),
    Refusal("Sequences(x[:0], lengths[:0], y[:0])", ValueError,
            "is empty: pass at least one sequence"),
    Refusal("part.subset(torch.tensor([False, False]))", ValueError, "is empty: pass at least one"),
    Refusal("Sequences(x, torch.tensor([3, 0]), y)", ValueError, "sequence 1 has the length 0"),
    Refusal("Sequences(x, torch.tensor([4, 1]), y)", ValueError, "sequence 0 has the length 4"),
    Refusal("Sequences(x, lengths, torch.zeros(2, 3))", ValueError, "not one from 3 (the output"),
    Refusal("Sequences(gap, lengths, y)", ValueError,
            "1 of 2 sequences have a NaN or infinite value (the first is number 1): leave them"),
    Refusal("Sequences(x, lengths, torch.tensor([[math.inf], [0]]))", ValueError,
            "(the first is number 0): leave them out, or fill the gaps"),
    Refusal("SequenceTask(part, part, wider, ())", ValueError,
            "channels of train, validation and test differ"),
    Refusal("SequenceTask(part, labelled, part, ())", ValueError, "types of y"),
    Refusal("SequenceTask(part, part, part, ('a',))", ValueError,
            "pass int64 classes with names, or float32 values"),
    Refusal("SequenceTask(labelled, labelled, labelled, ())", ValueError,
            "pass int64 classes with names, or float32 values"),
    Refusal("SequenceTask(labelled, labelled, labelled, ('a', 'b'))", ValueError,
            "classes from 0 to 2, with 2 names: number them from 0"),
    Refusal("pad([])", ValueError, "there is no series: pass at least one"),
    Refusal("pad(series((2, 1), (0, 1)))", ValueError, "series 1 has the shape (0, 1): pass (le"),
    Refusal("pad(series((2, 1), (2, 2)))", ValueError, "series 1 has the shape (2, 2): pass (le"),
    Refusal("pad(series((2,)))", ValueError, "series 0 has the shape (2,): pass (length"),
    Refusal("held_out(torch.zeros(3, dtype=torch.int64), 1)", ValueError, "every=1 holds all out"),
    Refusal("load_watch(0)", ValueError, "window=0 is not positive"),
    Refusal("log_mel(torch.zeros(399))", ValueError, "pass one channel of at least 400"),
]  # fmt: skip
