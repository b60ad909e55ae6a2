"""Devices, accuracy and fidelity measurements, parallel tasks."""
