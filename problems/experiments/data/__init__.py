"""Data sets that the example problems generate instead of downloading."""
