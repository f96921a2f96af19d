"""From data to a trained model: data sets, models, training, checkpoints, the command line."""
