"""Small folders in the layout in which Omniglot and Mini-ImageNet are published."""

from PIL import Image

ALPHABETS = {
    "images_background": {"Greek": 9, "Latin": 5},
    "images_evaluation": {"Tifinagh": 4, "Glagolitic": 3},
}
DRAWERS = 3
CLASSES = {"train": ["n01", "n02", "n03"], "val": ["n04", "n05"], "test": ["n06", "n07"]}
SIZES = {"n01": 5, "n02": 6, "n03": 4, "n04": 4, "n05": 4, "n06": 4, "n07": 4}


def draw(number, drawer):
    """A 105 × 105 drawing, black on white, that no other class or drawer shares."""
    image = Image.new("1", (105, 105), 1)
    row, column = 5 + 4 * number, 10 + 20 * drawer
    for dx in range(8):
        for dy in range(4):
            image.putpixel((column + dx, row + dy), 0)
    return image


def make_omniglot(path):
    """Write 21 characters of four alphabets, drawn by three people each; return ``path``."""
    number = 0
    for part, alphabets in ALPHABETS.items():
        for alphabet, count in alphabets.items():
            for character in range(1, count + 1):
                folder = path / part / alphabet / f"character{character:02}"
                folder.mkdir(parents=True)
                for drawer in range(DRAWERS):
                    name = f"{number + 1:04}_{drawer + 1:02}.png"
                    draw(number, drawer).save(folder / name)
                number += 1
        (path / part / ".DS_Store").write_bytes(b"not a folder")
    return path


def make_mini_imagenet(path):
    """Write seven classes of photographs, each of one colour, and their lists; return ``path``."""
    (path / "images").mkdir()
    for part, labels in CLASSES.items():
        rows = ["filename,label"]
        for label in labels:
            for i in range(SIZES[label]):
                grey = 20 * int(label[1:]) + i
                colour = (grey, 255 - grey, 60)
                name = f"{label}{i:08}.jpg"
                Image.new("RGB", (100 + i, 90), colour).save(path / "images" / name, quality=95)
                rows.append(f"{name},{label}")
        (path / f"{part}.csv").write_text("\r\n".join(rows) + "\r\n")
    return path
