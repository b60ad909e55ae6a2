"""Parts of `tasks`: images, phases and cycle of learning one task after another; the store of tasks, its checks."""
