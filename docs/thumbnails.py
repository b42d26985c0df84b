"""Thumbnails of the gallery: one panel of a figure, large enough to be read."""

from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image, ImageOps
from sphinx_gallery.scrapers import matplotlib_scraper

IMAGES = Path(__file__).parent / "examples" / "images"
SIZE = (480, 336)
# which panel of a figure says most; the first, where a script is not named
PANELS = {"plot_hyperparameters": 1, "plot_mixture_vae": 1, "plot_sparse_pde": 1}


def scraper(block, block_vars, gallery_conf):
    """Save figures as sphinx-gallery does, and beside them one panel."""
    name = Path(block_vars["src_file"]).stem
    for number in plt.get_fignums():
        figure = plt.figure(number)
        figure.canvas.draw()  # the layout is known afterwards
        panel = figure.axes[PANELS.get(name, 0)]
        inches = panel.get_tightbbox().transformed(figure.dpi_scale_trans.inverted())
        IMAGES.mkdir(parents=True, exist_ok=True)
        figure.savefig(IMAGES / f"{name}.panel.png", bbox_inches=inches.padded(0.05), dpi=150)
    return matplotlib_scraper(block, block_vars, gallery_conf)


def put(app):
    """Put the panels in the places of the thumbnails, which sphinx-gallery has made."""
    for panel in IMAGES.glob("*.panel.png"):
        name = panel.name.removesuffix(".panel.png")
        with Image.open(panel) as image:
            small = ImageOps.pad(image.convert("RGB"), SIZE, color="white")
        small.save(IMAGES / "thumb" / f"sphx_glr_{name}_thumb.png")
