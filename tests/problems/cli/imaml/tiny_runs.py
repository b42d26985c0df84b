"""Runs that take a fraction of a second, and what they wrote."""

import json

GLYPHS = [
    *("--ways", "2", "--shots", "1", "--queries", "2", "--meta-batch", "2"),
    *("--inner-steps", "2", "--newton-steps", "1", "--adjoint-steps", "2"),
    *("--width", "4", "--side", "7", "--instances", "3"),
    *("--validations", "2", "--validation-tasks", "4", "--evaluation-tasks", "6"),
]
WAVES = [
    *("--data", "sinusoid", "--shots", "3", "--queries", "4", "--width", "6", "--meta-batch", "3"),
    *("--inner-steps", "2", "--newton-steps", "1", "--adjoint-steps", "2", "--strength", "20"),
    *("--validations", "2", "--validation-tasks", "4", "--evaluation-tasks", "5"),
]
METHODS = ("imaml-gd", "imaml-hf", "maml", "fomaml", "reptile", "r2d2")


def metrics_of(out):
    """What does not depend on the machine's speed."""
    metrics = json.loads((out / "metrics.json").read_text())
    del metrics["timing"]
    return metrics
