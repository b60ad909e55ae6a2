"""Criteria for removing channels: one number per channel, and the choice of the channels that stay."""
