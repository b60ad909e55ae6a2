"""Training loop with recipes, optimizers, schedules, hooks and checkpoints; tasks, losses and files of fine-tuning."""
