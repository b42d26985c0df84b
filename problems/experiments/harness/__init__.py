"""What the experiments share: options, the folder of a run, training, figures."""
