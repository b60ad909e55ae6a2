"""Several processes that work on one command: torchrun starts them, torch.distributed connects them."""
